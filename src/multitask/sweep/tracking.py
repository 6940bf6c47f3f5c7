"""The sweep's own W&B run: the table of its jobs, in the group of their runs."""

import hashlib
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multitask.errors import on_one_line
from multitask.sweep.summary import Summary

JOB_TYPE = "sweep"


def log(config: DictConfig, summary: Summary, folder: Path) -> None:
    """Log the table of all jobs if the sweep's config has a W&B logger; a resumed sweep replaces it.

    If W&B cannot be reached, print a warning: the jobs' folders contain everything.
    """
    logger: Any = OmegaConf.select(config, "logger.wandb")
    mode: Any = logger.get("mode", "online") if logger else "disabled"
    if mode == "disabled":
        return
    from multitask import quiet_loggers  # noqa: F401  # isort: skip
    import wandb  # deferred, for a fast start

    jobs, metrics = summary.jobs, [f"{task}/{metric}" for task, metric in summary.columns]
    columns: list[Any] = ["method", *summary.varied, "seed", "status", *metrics, "run"]
    rows = [
        [
            job.method,
            *summary.settings(job),
            job.seed,
            status,
            *map(found.get, summary.columns),
            job.folder.name,
        ]
        for job, status, found in zip(jobs, summary.statuses, summary.metrics, strict=True)
    ]
    # One id for the sweep, also when it is resumed.
    name = f"{folder.name[:40]}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    for old in folder.glob(f"wandb/offline-run-*-{name}"):
        shutil.rmtree(old)  # outdated
    try:
        run = wandb.init(
            project=logger.get("project"), entity=logger.get("entity"), mode=mode, dir=folder, id=name,
            name=folder.name, group=folder.name, job_type=JOB_TYPE, resume="allow" if mode == "online" else None,
            config={"sweep": folder.name, "jobs": [job.folder.name for job in jobs]},
        )  # fmt: skip
        run.log({"jobs": wandb.Table(columns=columns, data=rows)})
        run.summary.update({f"jobs/{status}": count for status, count in Counter(summary.statuses).items()})
        run.finish()
    except (wandb.errors.Error, OSError) as error:
        print(
            f"the sweep's table is not in W&B ({on_one_line(error)}); run `wandb login`, or use "
            "logger.wandb.mode=offline.",
            file=sys.stderr,
        )
