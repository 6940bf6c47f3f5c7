"""OmegaConf resolvers of the YAML files, such as ``${num_tasks:}``, ``${task_names:}`` and ``${sweep_id:}``."""

import hashlib
import re
import secrets
from collections.abc import Container, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from multitask import places, system
from multitask.evaluation.names import SINGLE_TASK
from multitask.run.devices import gpus_of_job, parallel_jobs, processes


def register() -> None:
    """Register the resolvers with OmegaConf; further calls have no effect."""
    new = OmegaConf.register_new_resolver
    new("project_root", lambda: str(places.root()), replace=True)
    new("embedded_data", lambda: str(places.EMBEDDED), replace=True)
    new("num_tasks", lambda *, _root_: len(_root_.tasks) or None, replace=True)
    # The tasks that have a head, and therefore need features of the trunk.
    new(
        "task_names",
        lambda *, _root_: [str(n) for n, task in _root_.tasks.items() if "head" in task],
        replace=True,
    )
    new("targets", _targets, replace=True)
    new("run_tags", _run_tags, replace=True)
    new("complement", lambda share: 1.0 - share, replace=True)
    # Cached, so that a process and the jobs it starts agree on it.
    new("run_id", _run_id, use_cache=True, replace=True)
    new("sweep_name", _sweep_name, replace=True)
    new("sweep_id", _sweep_id, replace=True)
    new("experiment_name", _experiment_name, replace=True)
    new("variant", _variant, replace=True)
    new("job_name", _job_name, replace=True)
    new("parallel_jobs", lambda *, _root_: parallel_jobs(_root_.trainer.accelerator), replace=True)
    new("gpus_of_job", lambda *, _root_: gpus_of_job(**_root_.trainer), replace=True)
    new("processes", lambda *, _root_: processes(_root_), replace=True)
    new("threads", lambda: system.cores(), replace=True)


def _run_id() -> str:
    """Return a name that sorts by time and is unique among processes started in the same second."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"


def _sweep_name() -> str | None:
    """Return the name of the sweep that this job belongs to, ``None`` outside a sweep."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None


def _sweep_id(new: str, *, _root_: DictConfig) -> str:
    """Return the sweep that ``sweep=<id>`` names, or the new name."""
    return new if OmegaConf.is_interpolation(_root_, "sweep") else str(_root_.sweep)


def _experiment_name(*, _root_: DictConfig) -> str:
    """Return the experiment's name, or the data set's if no experiment was chosen."""
    hydra = _root_.hydra if "hydra" in _root_ else HydraConfig.get()
    choices: Any = hydra.runtime.choices
    return str(choices.experiment or choices.data).replace("/", "-")


# The weighting's settings, and those of callbacks that skip losses in some steps.
_SETTINGS = ("weighting.", "callbacks.schedule.", "callbacks.per_task", "callbacks=per_task")


def _variant() -> str:
    """Return the overrides of how losses are combined, which distinguish runs of one method; "" if there are none.

    A task that is trained alone has none: every weighting gives it its own gradient.
    """
    hydra = HydraConfig.get()
    if hydra.runtime.choices.get("baseline") == SINGLE_TASK:
        return ""
    own = [override.lstrip("+") for override in hydra.overrides.task]
    settings = sorted(o.removeprefix("weighting.") for o in own if o.startswith(_SETTINGS))
    return " ".join(settings)


def _run_tags(separator: str | None = None, *, _root_: DictConfig) -> list[str] | str:
    """Return method, data set and the user's own tags, as one string where there is a separator."""
    data = str(HydraConfig.get().runtime.choices["data"])
    tags = [str(tag) for tag in (_root_.method, data, *(_root_.get("tags") or []))]
    return tags if separator is None else separator.join(tags)


def _targets(*, _root_: DictConfig) -> list[str] | None:
    """Return the targets that the tasks need; ``None``, for all, if the model has no tasks."""
    if not _root_.tasks:
        return None
    return sorted({_root_.tasks[name].target for name in _root_.tasks if "target" in _root_.tasks[name]})


def _job_name(*, _root_: DictConfig) -> str:
    job = _root_.hydra.job.config.override_dirname
    return slug([str(override) for override in _root_.hydra.overrides.task], set(job.exclude_keys))


def slug(overrides: Sequence[str], exclude: Container[str] = ()) -> str:
    """Return the name of a job's folder: its overrides but the excluded keys, in readable form, and a digest of them.

    It depends only on the overrides, so that a repeated sweep finds the folder again, and needs no quotes in a
    shell.
    """
    own = [override for override in overrides if override.partition("=")[0] not in exclude]
    # The weighting and the seed first: the rest may be cut.
    own.sort(key=lambda o: (not o.startswith("weighting="), not o.startswith("seed="), o))
    digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:8]
    readable = "-".join(map(_short, own))[:80].strip("-_.")
    return f"{readable}-{digest}" if readable else digest


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return re.sub(r"[^\w.+-]+", "_", f"{key.rpartition('.')[2]}_{value}")


def plain(config: Any) -> Any:
    """Return a config as plain resolved containers."""
    return OmegaConf.to_container(config, resolve=True)
