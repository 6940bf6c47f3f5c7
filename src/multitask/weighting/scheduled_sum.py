import itertools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from multitask.gradients.rows import sent
from multitask.weighting.base import Layout, Scalarization


class ScheduledSum(Scalarization):
    """Σ w(t) L, each weight interpolated linearly between the points of its schedule and constant outside them.

    Args:
        schedule: Points ``[[time, weight], …]`` with increasing times, by task name; the weight of other tasks is one.
        unit: The unit of time: optimizer steps or epochs, from zero.
    """

    on_cpu = True
    per_task: ClassVar[dict[str, Layout]] = {"index": "vector"}
    time: Tensor
    linear = True

    def __init__(
        self,
        tasks: Sequence[str],
        schedule: Mapping[str, Sequence[Sequence[float]]],
        unit: Literal["step", "epoch"] = "step",
    ) -> None:
        super().__init__()
        if unit not in ("step", "epoch"):
            raise ValueError(f"weighting.unit={unit} is unknown; choose step or epoch.")
        unknown = [name for name in schedule if name not in tasks]
        if unknown:
            raise ValueError(
                f"weighting.schedule names {', '.join(unknown)}, but the tasks are {', '.join(tasks)}."
            )
        self.unit = unit
        self.points = [points(f"weighting.schedule.{name}", schedule.get(name, [[0, 1]])) for name in tasks]
        self.index = torch.arange(len(tasks))
        self.keep("time", torch.zeros((), dtype=torch.long))

    def forward(self, losses: Tensor) -> Tensor:
        now = float(self.time)
        weights = [np.interp(now, *self.points[i]) for i in self.index.tolist()]
        return (sent(torch.tensor(weights, dtype=losses.dtype), losses.device) * losses).sum()

    def observe(self, losses: Tensor) -> None:
        if self.unit == "step":
            self.time += 1

    def on_epoch_end(self) -> None:
        if self.unit == "epoch":
            self.time += 1


def points(key: str, given: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return the times and the weights of points ``[[time, weight], …]``.

    Raises:
        ValueError: Naming the key, if they are not pairs of finite numbers, or the times do not rise.
    """
    key = f"{key}={given}"
    try:
        [*times], [*weights] = np.array(given, dtype=float).T.tolist()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} must be a list of [time, weight] pairs.") from error
    if not np.isfinite([*times, *weights]).all():
        raise ValueError(f"{key} must have finite numbers.")
    if any(later <= earlier for earlier, later in itertools.pairwise(times)):
        raise ValueError(f"{key} must have rising times.")
    return times, weights
