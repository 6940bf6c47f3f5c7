"""Losses over valid pixels, and the quantile loss."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def same_shape(name: str, prediction: Tensor, target: Tensor) -> None:
    """Raise ``ValueError`` if the shapes differ, since broadcasting would give a wrong result."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"{name} got predictions of shape {list(prediction.shape)} for targets of shape "
            f"{list(target.shape)}; make tasks.*.head give the shape of the target."
        )


class Reduced(nn.Module):
    """A loss with ``reduction``: ``mean``, or ``none`` for one value per example; others raise ``ValueError``."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"tasks.*.loss.reduction is mean or none, not {reduction!r}.")
        self.reduction = reduction


class ValidPixels(Reduced):
    """Mean of an error over the valid pixels.

    ``reduction="mean"``: a scalar, the mean over all valid pixels of the batch. ``reduction="none"``:
    ``[batch]``, the mean over each example's valid pixels. Without a valid pixel, loss and gradient are 0.
    Raises ``ValueError`` if the shapes of prediction and target differ.
    """

    @abstractmethod
    def valid(self, target: Tensor) -> Tensor:
        """Return the mask of valid targets, ``[batch, height, width]``."""

    @abstractmethod
    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the error of each pixel, ``[batch, height, width]``, finite also for invalid targets."""

    def count(self, target: Tensor) -> Tensor:
        """Return the number of valid pixels."""
        return self.valid(target).sum()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of predictions ``[batch, channels, height, width]``."""
        same_shape(type(self).__name__, prediction, target)
        valid = self.valid(target)
        # Invalid targets may be NaN, which multiplication by a mask would not remove.
        target = target.masked_fill(~valid.unsqueeze(1), 0)
        error = self.error(prediction, target) * valid
        if self.reduction == "mean":
            return error.sum() / valid.sum().clamp(min=1)
        return error.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)


class DepthL1(ValidPixels):
    """Mean |prediction − target| over pixels whose depth is neither 0 nor NaN.

    ``prediction`` and ``target``: ``[batch, 1, height, width]`` in the same unit. (End-to-End Multi-Task Learning
    with Attention, 2019.)
    """

    def valid(self, target: Tensor) -> Tensor:
        """Return the mask of measured depths."""
        return (target > 0).squeeze(1)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return |prediction − target|."""
        return (prediction - target).abs().squeeze(1)


class NormalCosine(ValidPixels):
    """Mean of 1 − cosine of the angle over pixels whose normal is neither zero nor NaN.

    ``prediction``: ``[batch, 3, height, width]``, not necessarily normalized; ``target``: unit vectors of the same
    shape. The gradient is that of MTAN's −⟨u, v⟩ (End-to-End Multi-Task Learning with Attention, 2019), but the loss
    is in [0, 2] and 0 for a correct prediction, so that ratios of losses are meaningful.
    """

    def valid(self, target: Tensor) -> Tensor:
        """Return the mask of known normals."""
        return target.isfinite().all(dim=1) & (target != 0).any(dim=1)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return 1 − cosine."""
        return 1 - nn.functional.cosine_similarity(prediction, target, dim=1, eps=1e-6)


class PixelCrossEntropy(Reduced):
    """Cross-entropy over the labelled pixels, zero if there are none.

    Unlike ``torch.nn.CrossEntropyLoss(ignore_index=…)``, the mean of a batch without labelled pixels is not NaN, and
    ``reduction="none"`` returns one value per example instead of per pixel. ``prediction``: logits
    ``[batch, classes, height, width]``; ``target``: ``[batch, height, width]``; ``weight``: one number per class,
    which weights the mean as in torch.
    """

    weight: Tensor | None

    def __init__(
        self, ignore_index: int = -1, weight: list[float] | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.ignore_index = ignore_index
        self.register_buffer("weight", None if weight is None else torch.tensor(weight), persistent=False)

    def count(self, target: Tensor) -> Tensor:
        """Return the number of labelled pixels, or the sum of their class weights."""
        return self._counts(target).sum()

    def _counts(self, target: Tensor) -> Tensor:
        valid = target != self.ignore_index
        return valid.float() if self.weight is None else self.weight[target.where(valid, 0)] * valid

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, or ``[batch]`` with ``reduction="none"``."""
        error = nn.functional.cross_entropy(
            prediction, target, weight=self.weight, ignore_index=self.ignore_index, reduction="none"
        )
        counts = self._counts(target).to(error)
        least = torch.finfo(error.dtype).tiny
        if self.reduction == "mean":
            return error.sum() / counts.sum().clamp(min=least)
        totals = counts.reshape(len(counts), -1).sum(1).clamp(min=least)
        return error.reshape(len(error), -1).sum(1) / totals


class Pinball(nn.Module):
    """Mean over examples and quantiles of max(q·d, (q − 1)·d), d = target − prediction (Regression Quantiles, 1978).

    ``prediction``: ``[batch, quantiles]``; ``target``: ``[batch]`` or ``[batch, 1]``. Its task needs
    ``loss_checks_shapes: true``. Raises ``ValueError`` if a quantile is not in (0, 1), or the shapes do not match.
    """

    quantiles: Tensor

    def __init__(self, quantiles: Sequence[float]) -> None:
        super().__init__()
        if not quantiles or not all(0 < q < 1 for q in quantiles):
            raise ValueError(f"tasks.*.loss.quantiles are numbers between 0 and 1, not {list(quantiles)}.")
        self.register_buffer("quantiles", torch.tensor(quantiles), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        expected = (len(target), len(self.quantiles))
        if prediction.shape != expected or target.numel() != len(target):
            raise ValueError(
                f"Pinball got predictions of shape {list(prediction.shape)} for targets of shape {list(target.shape)} "
                f"and {len(self.quantiles)} quantiles; make tasks.*.head as wide as the quantiles, for one target "
                "per example."
            )
        error = target.view(-1, 1) - prediction
        return torch.maximum(self.quantiles * error, (self.quantiles - 1) * error).mean()
