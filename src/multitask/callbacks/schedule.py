"""Switches tasks on and off by epoch, and schedules weights of their losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from multitask.callbacks.switching import check_switching
from multitask.errors import ConfigError, check_names
from multitask.lightning.module import MultiLossModule
from multitask.weighting.scheduled_sum import points

_KEYS = ("from_epoch", "until_epoch", "weight")


class Schedule(Callback):
    """Switches losses on and off, and weighs them, by the epoch's number; a resumed run behaves the same.

    A task that is off is absent from training steps, like one without labels: the other tasks train as they would
    without it, and its head does not change. It is still evaluated.

    Args:
        tasks: By task name, any of ``from_epoch``, the first epoch (from 0) that trains the task; ``until_epoch``,
            the first that no longer does; and ``weight``, the factor of its loss as points ``[[epoch, factor], …]``,
            linear between them and constant outside. A task with factor 0 is off.

    Raises:
        ConfigError: If there are no tasks, a key is unknown, or a value is invalid.
    """

    def __init__(self, tasks: Mapping[str, Mapping[str, Any]] | None) -> None:
        if not tasks:
            raise ConfigError(
                "callbacks.schedule.tasks names no task; give some, such as {right:{from_epoch:2}}."
            )
        self._between: dict[str, tuple[float, float]] = {}
        self._points: dict[str, tuple[list[float], list[float]]] = {}
        for name, given in tasks.items():
            key = f"callbacks.schedule.tasks.{name}"
            if unknown := [str(k) for k in given if k not in _KEYS]:
                raise ConfigError(
                    f"{key}.{unknown[0]} is not a key of a schedule, which has {', '.join(_KEYS)}."
                )
            first, end = given.get("from_epoch") or 0, given.get("until_epoch")
            if not all(isinstance(epoch, int) for epoch in (first, 0 if end is None else end)):
                raise ConfigError(
                    f"{key}: from_epoch={first} and until_epoch={end} have to be whole numbers."
                )
            if first < 0 or (end is not None and end <= first):
                raise ConfigError(
                    f"{key} leaves no epoch between from_epoch={first} and until_epoch={end}; raise the latter."
                )
            self._between[name] = (first, np.inf if end is None else end)
            if given.get("weight") is not None:
                self._points[name] = _points(f"{key}.weight", given["weight"])
        self._epoch: int | None = None

    def factor(self, name: str, epoch: int) -> float:
        """Return the factor of a loss in an epoch, 0 if it is off."""
        first, end = self._between.get(name, (0, np.inf))
        if not first <= epoch < end:
            return 0.0
        return float(np.interp(epoch, *self._points[name])) if name in self._points else 1.0

    def check(self, module: LightningModule) -> None:
        """Refuse unknown tasks, and epochs without a task; tell the module that losses may be absent."""
        check_switching("callbacks.schedule", module)
        assert isinstance(module, MultiLossModule)
        check_names("callbacks.schedule.tasks", self._between, module.names)
        changes = [edge for between in self._between.values() for edge in between if np.isfinite(edge)]
        changes += [times[-1] for times, _ in self._points.values()]
        for epoch in range(int(max(changes)) + 2):
            if not any(self.factor(name, epoch) for name in module.names):
                raise ConfigError(
                    f"callbacks.schedule.tasks switches off all tasks in epoch {epoch}, counted from 0; leave one on."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the schedule at the first batch."""
        self._epoch = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Switch and weigh losses at the start of an epoch."""
        if self._epoch == trainer.current_epoch:
            return
        self._epoch = trainer.current_epoch
        assert isinstance(pl_module, MultiLossModule)
        factors = {name: self.factor(name, self._epoch) for name in pl_module.names}
        pl_module.switch_off("schedule", [name for name, factor in factors.items() if not factor])
        pl_module.factors = {name: factor for name, factor in factors.items() if factor not in (0.0, 1.0)}


def _points(key: str, given: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    try:
        times, factors = points(key, given)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if min(factors) < 0:
        raise ConfigError(f"{key} has a factor below 0; factors must be at least 0.")
    return times, factors
