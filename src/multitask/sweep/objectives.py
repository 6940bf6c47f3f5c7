"""The objectives of a search: values in the result files of its jobs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig

from multitask.errors import ConfigError, choices
from multitask.evaluation.names import COMBINED
from multitask.run.model_choice import is_own
from multitask.sweep.plan import Job
from multitask.sweep.state import COMPLETED, read_record, read_rows, status_of

TASKS = "tasks"


@dataclass(frozen=True)
class Objective:
    """A logged value to minimize or maximize, such as ``val/left/accuracy`` or ``val/loss/left``."""

    key: str
    mode: str

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Optuna's name of the mode."""
        return "minimize" if self.mode == "min" else "maximize"


def objectives(given: str | Mapping[str, str] | None, config: DictConfig) -> list[Objective]:
    """Return the objectives of a search; refuse values that are not measured, or belong to the test split.

    Args:
        given: Key → ``min`` or ``max``; ``tasks`` for the validation loss of every task; ``None`` for
            ``selection.metric``.
        config: The sweep's own config.
    """
    selection = config.selection
    if given is None:
        if selection.metric is None:
            raise ConfigError(
                "hydra.sweeper.objectives and selection.metric are null; name what to optimize, for example "
                "hydra.sweeper.objectives={val/loss/left:min}."
            )
        return [Objective(str(selection.metric), str(selection.mode))]
    if given == TASKS:
        if is_own(config):
            raise ConfigError(
                f"hydra.sweeper.objectives={TASKS} uses the losses of task=[…], and the model has its own losses; "
                "name them, for example hydra.sweeper.objectives={val/loss/<name>:min}."
            )
        return [Objective(f"val/loss/{name}", "min") for name, task in config.tasks.items() if "head" in task]
    if isinstance(given, str):
        raise ConfigError(f"hydra.sweeper.objectives={given} is unknown; give {TASKS}, or {{key:min}}.")
    known = {str(selection.metric), *_measured(config)}
    for key, mode in given.items():
        if mode not in ("min", "max"):
            raise ConfigError(f"hydra.sweeper.objectives.{key}={mode} is unknown; choose min or max.")
        if key.startswith("test/"):
            raise ConfigError(
                f"hydra.sweeper.objectives.{key}: settings chosen on the test split invalidate its results; use "
                "one of val/…"
            )
        if key not in known and not is_own(config):
            raise ConfigError(f"hydra.sweeper.objectives.{key} is not measured; {choices(key, known)}")
    return [Objective(key, mode) for key, mode in given.items()]


def measure(jobs: Sequence[Job], wanted: Sequence[Objective], selection: str | None) -> list[float] | None:
    """Return each objective's mean over a trial's jobs, one per seed; ``None`` if a job failed or diverged.

    ``selection`` is the key that selected the weights.
    """
    if any(status_of(job.folder) != COMPLETED for job in jobs):
        return None
    means = [sum(_value(job, each.key, selection) for job in jobs) / len(jobs) for each in wanted]
    return means if all(map(math.isfinite, means)) else None


def _value(job: Job, key: str, selection: str | None) -> float:
    if key == selection:
        value = read_record(job.folder).get("selected_value")
        return math.nan if value is None else float(value)
    rows = read_rows(job.folder / "results.csv")
    return next((float(row["value"]) for row in rows if _key(row) == key), math.nan)


def _key(row: Mapping[str, str]) -> str:
    if row["metric"] == "loss":
        return f"{row['split']}/loss" + ("" if row["task"] == COMBINED else f"/{row['task']}")
    return f"{row['split']}/{row['task']}/{row['metric']}"


def _measured(config: DictConfig) -> list[str]:
    keys: list[str] = []
    for split in config.evaluation.splits:
        for name, task in config.tasks.items():
            metrics: Any = task.get("metrics") or {}
            keys += [f"{split}/loss/{name}", *(f"{split}/{name}/{metric}" for metric in metrics)]
    return [key for key in keys if not key.startswith("test/")]
