"""Metrics in float64, whatever device and precision the model has."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

_WITHOUT_FLOAT64 = ("mps",)


def home(device: torch.device) -> torch.device:
    """Return where metrics of a model on ``device`` are computed: the CPU where the device has no float64."""
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def exact(values: Tensor) -> Tensor:
    """Return values where metrics are computed, floats among them as float64."""
    values = values.to(home(values.device))
    return values.double() if values.is_floating_point() else values


class Exact(MetricCollection):
    """Metrics that keep their sums in float64.

    Sums of squares of numbers far from zero cancel: in float32 an R² of targets of mean 100,000 and deviation 3 has
    no digit left. Casting the module around them (``half()``, ``to(torch.bfloat16)``, Lightning's ``*-true``
    precisions) leaves the states as they are, and a device without float64 (MPS) leaves them on the CPU.

    Args:
        metrics: The metrics by name. They share no states: a collection would take metrics whose states agree on
            its first batch for one, whatever their arguments.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__(dict(metrics), compute_groups=False)
        super()._apply(exact)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        def moved(state: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=state.device)).device
            return exact(state.to(home(device)))

        return super()._apply(moved, *args, **kwargs)
