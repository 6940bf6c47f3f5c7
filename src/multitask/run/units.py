"""Refuses a prediction that is compared with a target in other units."""

from collections.abc import Mapping

import torch
from torch import Tensor

from multitask.errors import ConfigError
from multitask.task.derived import PredictionOf
from multitask.task.targets import Standardized
from multitask.task.task import Task


def check_units(name: str, task: Task, tasks: Mapping[str, Task]) -> None:
    """Check that a task that uses another task's prediction has the same units as that task.

    Args:
        name: The task's name.
        task: The task, fitted to the training targets.
        tasks: All tasks that predict, by name.

    Raises:
        ConfigError: If they are standardized differently, or only one of them is.
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
        f"tasks.{name}: its prediction is that of tasks.{task.prediction.task}, in {_in_words(other, its)}, and its "
        f"loss uses {_in_words(task, own)}; give both the same target and transform, or leave transform out of both."
    )


def _units(task: Task) -> Tensor | None:
    """Return mean and deviation of each column, ``[2, columns]``; ``None`` if the target is not standardized."""
    if not isinstance(task.transform, Standardized):
        return None
    return torch.stack([task.transform.mean, task.transform.std])


def _in_words(task: Task, units: Tensor | None) -> str:
    if units is None:
        return f"the units of the target '{task.target}'"
    mean, std = (", ".join(f"{value:.4g}" for value in row[:3].tolist()) for row in units)
    return f"deviations of the target '{task.target}' (mean {mean}, deviation {std})"
