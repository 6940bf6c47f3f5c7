"""Properties of a metric, determined by evaluating a copy of it in float64."""

import warnings

import torch
from torch import Tensor
from torchmetrics import Metric


def tried(metric: Metric, prediction: Tensor, target: Tensor) -> Tensor | None:
    """Return the value of a copy of a metric after one update; ``None`` if that fails."""
    metric = metric.clone().set_dtype(torch.float64)
    metric.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about random values; validation shows those that matter
            metric.update(prediction, target)
            value = metric.compute()
    except Exception:  # a user's metric may raise anything on random values
        return None
    return value if isinstance(value, Tensor) else None


def same(value: Tensor | None, expected: Tensor | None) -> bool:
    """Return whether two values are equal up to rounding."""
    if value is None or expected is None or value.shape != expected.shape:
        return False
    return torch.allclose(value.double(), expected.double(), rtol=1e-4, atol=1e-6)


def is_relative(metric: Metric, prediction: Tensor, target: Tensor) -> bool:
    """Return whether a metric is invariant to scaling and shifting predictions and targets.

    Such a metric (R², a correlation, an error relative to the spread) divides by the variation of the target and is
    undefined for constant targets. It is evaluated on random values of the shapes of prediction and target,
    ``[batch, …]``.
    """
    if not target.is_floating_point() or prediction.shape[1:] != target.shape[1:]:
        return False
    if next(metric.parameters(), None) is not None:  # compares features of images by a network
        return False
    shape = (24 if target[:1].numel() <= 4096 else 4, *target.shape[1:])
    generator = torch.Generator().manual_seed(2)
    drawn = 1 + torch.rand(shape, generator=generator, dtype=torch.float64).to(target.device)
    near = drawn + 0.2 * torch.rand(shape, generator=generator, dtype=torch.float64).to(target.device)
    first, second = tried(metric, near, drawn), tried(metric, 3 * near + 5, 3 * drawn + 5)
    return first is not None and bool(first.isfinite().all()) and same(first, second)


def varies(lowest: Tensor, highest: Tensor) -> Tensor:
    """Return which columns of float64 values vary by more than rounding, given their smallest and largest values."""
    rounding = 4 * torch.finfo(torch.float64).eps * torch.maximum(lowest.abs(), highest.abs())
    return highest - lowest > rounding
