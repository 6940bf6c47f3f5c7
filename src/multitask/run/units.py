"""Refuses a prediction that is compared in other units than it is made in."""

from collections.abc import Mapping

import torch
from torch import Tensor

from multitask.errors import ConfigError
from multitask.task.derived import PredictionOf
from multitask.task.targets import Standardized
from multitask.task.task import Task


def check_units(name: str, task: Task, tasks: Mapping[str, Task]) -> None:
    """Check that a task which takes another's prediction counts in the same units as the other.

    Args:
        name: The task's name.
        task: The task, fitted to the training targets.
        tasks: All tasks that predict, by name.

    Raises:
        ConfigError: If both are standardized by unlike numbers, or one of them alone.
    """
    if not isinstance(task.prediction, PredictionOf) or task.prediction.task not in tasks:
        return
    other = tasks[task.prediction.task]
    own, its = _units(task), _units(other)
    if own is its is None:
        return
    if own is not None and its is not None and own.shape == its.shape:
        apart = (own - its).abs()
        if (apart <= 1e-6 * torch.maximum(own[1], its[1])).all():
            return
    raise ConfigError(
        f"tasks.{name}: its prediction is that of tasks.{task.prediction.task}, in {_told(other, its)}, and its loss "
        f"counts in {_told(task, own)}; give both the same target and transform, or leave transform out of both."
    )


def _units(task: Task) -> Tensor | None:
    """Return mean and deviation of each column, ``[2, columns]``; ``None`` where a task counts as its target does."""
    if not isinstance(task.transform, Standardized):
        return None
    return torch.stack([task.transform.mean, task.transform.std])


def _told(task: Task, units: Tensor | None) -> str:
    if units is None:
        return f"the units of the target '{task.target}'"
    mean, std = (", ".join(f"{value:.4g}" for value in row[:3].tolist()) for row in units)
    return f"deviations of the target '{task.target}' (mean {mean}, deviation {std})"
