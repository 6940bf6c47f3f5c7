"""One session of a sweep: launches the jobs that are not done yet."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from multitask.errors import ConfigError, RunFailed
from multitask.run.record import write_atomically
from multitask.sweep.command import RECORD
from multitask.sweep.job import record_failure
from multitask.sweep.plan import Job
from multitask.sweep.signals import Stop
from multitask.sweep.state import COMPLETED, FAILED, INTERRUPTED, RUNNING, WAITING, read_record, status_of

# The extra that installs a launcher, by its plugin's package.
_EXTRAS = {"hydra_joblib_launcher": "sweeps", "hydra_submitit_launcher": "sweeps", "multitask_ray": "ray"}


@contextmanager
def as_installed(config: DictConfig) -> Iterator[None]:
    """Refuse a launcher whose plugin is not installed, which the block needs, naming the extra."""
    try:
        yield
    except (RuntimeError, ImportError) as error:
        package = str(config.hydra.launcher.get("_target_", "")).split(".")[1:2]
        extra = _EXTRAS.get(package[0]) if package else None
        if extra is None:
            raise
        choice = config.hydra.runtime.choices["hydra/launcher"]
        raise ConfigError(
            f'hydra/launcher={choice} is not installed; install it with pip install -e ".[{extra}]".'
        ) from error


def begin(folder: Path, jobs: Sequence[Job]) -> None:
    """Write the sweep's command and jobs to a file, so that ``sweep=<id>`` can resume it.

    A folder whose sweep has jobs that this command lacks, or completed ones of another recipe, is refused.
    """
    path = folder / RECORD
    names = [job.folder.name for job in jobs]
    if path.is_file():
        lost = [name for name in json.loads(path.read_text(encoding="utf-8"))["jobs"] if name not in names]
        if lost:
            raise ConfigError(
                f"sweep={folder.name} has {len(lost)} jobs that this command lacks, such as {lost[0]}; a resumed sweep "
                "can add values, but not drop any: start another sweep instead."
            )
    for job in jobs:
        record = read_record(job.folder)
        if record.get("status") == COMPLETED and record.get("config_digest") != job.recipe:
            raise ConfigError(
                f"sweep={folder.name}: {job.folder.name} has completed with another recipe than the current "
                "config's; start another sweep, or remove that folder to run the job again."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"arguments": sys.argv[1:], "jobs": names}, indent=2) + "\n")


def launch(launcher: Launcher, jobs: Sequence[Job], stop: Stop, size: int | None = None) -> None:
    """Run the jobs that are neither done nor running elsewhere, ``size`` of them at once (all if it is ``None``)."""
    left = [job for job in jobs if status_of(job.folder) not in (COMPLETED, RUNNING)]
    size = size or max(1, len(left))
    batches = [left[start : start + size] for start in range(0, len(left), size)]
    dead: set[Path] = set()
    while batches:
        batch = batches.pop(0)
        try:
            launcher.launch([list(job.overrides) for job in batch], initial_job_idx=jobs.index(batch[0]))
        except Exception as error:
            stop.check()
            batches = _batches_to_retry(batch, dead, error) + batches
        stop.check()


def _batches_to_retry(batch: Sequence[Job], dead: set[Path], error: Exception) -> list[list[Job]]:
    """Return the batches to launch again after a process has died, once the others have ended.

    A process that dies takes down the jobs that its launcher runs in parallel. Each of them is launched again by
    itself: a job that dies twice has failed.
    """
    while any(status_of(job.folder) == RUNNING for job in batch):
        time.sleep(0.2)
    suspects = [job for job in batch if status_of(job.folder) == INTERRUPTED]
    waiting = [job for job in batch if status_of(job.folder) == WAITING]
    if not suspects and len(waiting) == len(batch):
        # No job has started: the launcher itself failed.
        raise error
    for job in suspects:
        if job.folder in dead:
            facts = {"method": job.method, "seed": job.seed, "overrides": list(job.overrides)}
            record_failure(
                job.folder, facts, "its process died without an error message: killed, or out of memory"
            )
    again = [[job] for job in suspects if job.folder not in dead]
    dead.update(job.folder for job in suspects)
    return [*again, *([waiting] if waiting else [])]


def raise_if_incomplete(jobs: Sequence[Job]) -> None:
    """Raise :class:`RunFailed` if a job has failed or did not run."""
    statuses = [status_of(job.folder) for job in jobs]
    if elsewhere := statuses.count(RUNNING):
        print(
            f"{elsewhere} of {len(jobs)} jobs are run by other processes: repeat the command when they have ended."
        )
    wrong = [status for status in statuses if status in (FAILED, INTERRUPTED, WAITING)]
    if wrong:
        counts = ", ".join(f"{wrong.count(status)} {status}" for status in dict.fromkeys(wrong))
        raise RunFailed(f"{len(wrong)} of {len(jobs)} jobs did not complete ({counts}).")
