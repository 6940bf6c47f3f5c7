"""Transforms between targets as stored, as the loss compares them, and as the metrics receive them."""

from collections.abc import Callable
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from multitask.metrics.precision import exact, home
from multitask.metrics.trials import varies


@runtime_checkable
class Fitted(Protocol):
    """A transform or loss that is fitted to the training targets before the first step."""

    def observe(self, targets: Tensor) -> None:
        """Add a batch of training targets: floats ``[batch, …]``, NaN where missing, or labelled classes ``[k]``."""

    def finish(self) -> None:
        """Fit to the observed targets and discard the accumulated state."""


class Transform(nn.Module):
    """Identity transform, and base class of the others."""

    def forward(self, target: Tensor) -> Tensor:
        """Return the target as the loss compares it, in the same shape."""
        return target

    def shown(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return prediction and target as the metrics receive them, given the transformed target."""
        return prediction, target

    def origin(self, shown: Tensor) -> Tensor | None:
        """Return an origin that translation-invariant metrics may subtract for precision; ``None`` for zero.

        It broadcasts over ``shown``, targets as the metrics receive them.
        """
        return None


class Standardized(Transform):
    """Standardizes targets by mean and standard deviation for the loss; metrics keep the target's units.

    Mean and deviation are those of the labelled training targets, one pair per column of ``[batch, columns]`` or
    channel of ``[batch, channels, …]``, and are saved in the checkpoint. They and the difference from the mean are
    float64 whatever the model's dtype: among float32 numbers around a million, a deviation of 1 has four digits. On
    devices without float64 (MPS) they stay on the CPU.

    Args:
        center: Whether to subtract the mean before dividing by the deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, center: bool = True) -> None:
        super().__init__()
        self.center = center
        self.register_buffer("mean", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("std", torch.ones(1, dtype=torch.float64))
        self._moments = _Moments()

    def observe(self, targets: Tensor) -> None:
        """Add a batch of training targets."""
        self._moments.add(_columns(targets))

    def finish(self) -> None:
        """Set mean and deviation; raise ``ValueError`` if a column has no labelled value, is constant or not finite."""
        mean, std = self._moments.result()
        self._moments = _Moments()
        self.mean = (mean if self.center else torch.zeros_like(mean)).to(self.mean.device)
        self.std = std.to(self.std.device)

    def forward(self, target: Tensor) -> Tensor:
        """Return the standardized target."""
        dtype = target.dtype if target.is_floating_point() else torch.get_default_dtype()
        wide = target.double() if home(target.device) == target.device else target.float()
        return ((wide - self._like(self.mean, wide)) / self._like(self.std, wide)).to(dtype)

    def shown(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in the target's units."""
        return self._back(prediction), self._back(target)

    def origin(self, shown: Tensor) -> Tensor:
        """Return the mean of the training targets."""
        return self._like(self.mean, shown)

    def _back(self, values: Tensor) -> Tensor:
        return values * self._like(self.std, values) + self._like(self.mean, values)

    @staticmethod
    def _like(statistic: Tensor, values: Tensor) -> Tensor:
        """Return one number per column, in a shape that broadcasts over ``[batch, columns, …]``."""
        statistic = statistic.to(values.dtype).to(values.device)
        return statistic if statistic.numel() == 1 else statistic.view(-1, *[1] * (values.ndim - 2))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(statistic: Tensor) -> Tensor:
            device = home(fn(torch.empty(0, device=statistic.device)).device)
            made = statistic.is_meta and device.type != "meta"  # to_empty
            return torch.empty_like(statistic, device=device) if made else statistic.to(device)

        return super()._apply(moved, recurse)


class Binary(Transform):
    """Classes 0 and 1, one or several per example, as floats for ``BCEWithLogitsLoss``.

    Metrics receive probabilities and integers, since torchmetrics interprets logits that all lie in [0, 1] as
    probabilities.
    """

    def forward(self, target: Tensor) -> Tensor:
        """Return 0.0 and 1.0."""
        return target if target.is_floating_point() else target.float()

    def shown(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and integer classes."""
        return prediction.sigmoid(), target.nan_to_num().long()


class Classes(Transform):
    """One of several classes, for metrics that need probabilities over dimension 1.

    Of targets that are class probabilities, which ``CrossEntropyLoss`` also accepts, metrics receive the argmax.
    """

    def shown(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and classes."""
        return prediction.softmax(dim=1), target.argmax(dim=1) if target.is_floating_point() else target


class Shown(Transform):
    """Applies a function to the prediction for the metrics, but not for the loss."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def shown(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the function of the prediction, and the target."""
        return self.function(prediction), target


def in_units(transform: Transform, prediction: Tensor) -> Tensor:
    """Return a prediction as the metrics receive it, without a target: probabilities, or values in the target's units.

    Values of a fitted transform are float64.
    """
    values = exact(prediction) if isinstance(transform, Fitted) else prediction
    return transform.shown(values, torch.zeros_like(values))[0]


class _Moments:
    """Running count, mean and variance of columns (Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances, 1979).
    """

    def __init__(self) -> None:
        self._count = self._mean = self._squares = torch.zeros((), dtype=torch.float64)
        self._lowest = torch.tensor(torch.inf, dtype=torch.float64)
        self._highest = -self._lowest

    def add(self, rows: Tensor) -> None:
        """Add values ``[n, columns]``, NaN where missing."""
        known, rows = ~rows.isnan(), rows.double()
        count = known.sum(0).double()
        self._lowest, self._highest = self._lowest.to(rows.device), self._highest.to(rows.device)
        self._lowest = torch.minimum(self._lowest, rows.where(known, torch.inf).amin(0))
        self._highest = torch.maximum(self._highest, rows.where(known, -torch.inf).amax(0))
        rows = rows.nan_to_num()
        mean = rows.sum(0) / count.clamp(min=1)
        squares = ((rows - mean).square() * known).sum(0)
        total = self._count + count
        shift = (mean - self._mean) * (count > 0)
        self._squares = self._squares + squares + shift.square() * self._count * count / total.clamp(min=1)
        self._mean = self._mean + shift * count / total.clamp(min=1)
        self._count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each column."""
        if not (self._count > 0).all():
            raise ValueError("the training split has no labelled value to compute mean and deviation from")
        std = (self._squares / self._count).sqrt()
        if not (self._mean.float().isfinite() & std.float().isfinite()).all():
            raise ValueError("the training targets are infinite, or too large for 32 bits; fix the data")
        if not varies(self._lowest, self._highest).all():
            raise ValueError("the training targets are constant and cannot be standardized; omit transform")
        return self._mean, std


def _columns(targets: Tensor) -> Tensor:
    """Reshape ``[batch]``, ``[batch, columns]`` or ``[batch, channels, …]`` to ``[n, columns]``."""
    return targets[:, None] if targets.ndim == 1 else targets.movedim(1, -1).flatten(0, -2)
