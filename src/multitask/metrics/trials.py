"""The behaviour of a metric, found by trying it in float64 on a copy."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric


def tried(update: Callable[[Metric], object], metric: Metric) -> Tensor | None:
    """Return what a copy of a metric says after an update, ``None`` where it cannot take the update."""
    metric = metric.clone().set_dtype(torch.float64)
    metric.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of drawn values: what matters is warned of in validation
            update(metric)
            value = metric.compute()
    except Exception:  # of numbers that nobody gave it, whatever a metric of the user's own raises
        return None
    return value if isinstance(value, Tensor) else None


def same(value: Tensor | None, wanted: Tensor | None) -> bool:
    """Return whether two values are the same but for rounding."""
    if value is None or wanted is None or value.shape != wanted.shape:
        return False
    return torch.allclose(value.double(), wanted.double(), rtol=1e-4, atol=1e-6)


def is_relative(metric: Metric, prediction: Tensor, target: Tensor) -> bool:
    """Return whether a metric of numbers is the same in every unit and from every origin.

    Such a metric (R², a correlation, an error relative to the spread) divides by how much the target varies, and has
    no value where it does not. It is tried on drawn numbers in the shapes given.

    Args:
        metric: The metric.
        prediction: As the metric sees it, ``[batch, …]``.
        target: As the metric sees it, ``[batch, …]``.
    """
    if not target.is_floating_point() or prediction.shape[1:] != target.shape[1:]:
        return False
    if next(metric.parameters(), None) is not None:  # compares what a network makes of images
        return False
    shape = (24 if target[:1].numel() <= 4096 else 4, *target.shape[1:])
    generator = torch.Generator().manual_seed(2)
    drawn = 1 + torch.rand(shape, generator=generator, dtype=torch.float64).to(target.device)
    near = drawn + 0.2 * torch.rand(shape, generator=generator, dtype=torch.float64).to(target.device)
    first = tried(lambda metric: metric.update(near, drawn), metric)
    second = tried(lambda metric: metric.update(3 * near + 5, 3 * drawn + 5), metric)
    return first is not None and bool(first.isfinite().all()) and same(first, second)


def varies(lowest: Tensor, highest: Tensor) -> Tensor:
    """Return which columns of float64 numbers vary by more than they are rounded, whatever batches they came in."""
    rounding = 4 * torch.finfo(torch.float64).eps * torch.maximum(lowest.abs(), highest.abs())
    return highest - lowest > rounding
