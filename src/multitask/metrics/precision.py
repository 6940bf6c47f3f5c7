"""Metrics in float64, whatever the model's device and precision."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

_WITHOUT_FLOAT64 = ("mps",)


def home(device: torch.device) -> torch.device:
    """Return the device for metrics of a model on ``device``: the CPU if the device lacks float64."""
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 if the device lacks it."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def exact(values: Tensor) -> Tensor:
    """Move values to the device for metrics, floats as float64."""
    values = values.to(home(values.device))
    return values.double() if values.is_floating_point() else values


class Exact(MetricCollection):
    """Metrics whose states are float64.

    Sums of squares of values far from zero cancel: in float32, R² of targets with mean 100,000 and deviation 3 has no
    correct digit. Casting the module that contains them (``half()``, ``to(torch.bfloat16)``, Lightning's ``*-true``
    precisions) does not change the states, and on devices without float64 (MPS) they stay on the CPU.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        # Compute groups merge metrics whose states agree on the first batch even if their arguments differ.
        super().__init__(dict(metrics), compute_groups=False)
        super()._apply(exact)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        def moved(state: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=state.device)).device
            return exact(state.to(home(device)))

        return super()._apply(moved, *args, **kwargs)
