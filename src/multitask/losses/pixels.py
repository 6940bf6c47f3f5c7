"""Losses that torch lacks: dense regression over the pixels that have a target, and quantiles."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Reduced(nn.Module):
    """A loss with ``reduction``: ``mean``, or ``none`` for one value per example; anything else is refused."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"tasks.*.loss.reduction is mean or none, not {reduction!r}.")
        self.reduction = reduction


class ValidPixels(Reduced):
    """Mean of an error over the valid pixels.

    ``reduction="mean"``: a scalar, the mean over all valid pixels of the batch. ``reduction="none"``:
    ``[batch]``, the mean over each example's own valid pixels. Without a valid pixel the loss is 0 and so
    is its gradient. Raises ``ValueError`` for predictions that have not the targets' shape.
    """

    @abstractmethod
    def valid(self, target: Tensor) -> Tensor:
        """Return the mask of valid targets, ``[batch, height, width]``."""

    @abstractmethod
    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of each pixel, ``[batch, height, width]``; finite also where the target is not valid."""

    def count(self, target: Tensor) -> Tensor:
        """Return the number of pixels that the mean is over."""
        return self.valid(target).sum()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of predictions ``[batch, channels, height, width]``."""
        if prediction.shape != target.shape:
            raise ValueError(
                f"{type(self).__name__} got predictions of shape {list(prediction.shape)} for targets of "
                f"shape {list(target.shape)}; make tasks.*.head give the shape of the target."
            )
        valid = self.valid(target)
        # The invalid targets may be NaN, whose product with a mask is NaN again: take them out first.
        target = target.masked_fill(~valid.unsqueeze(1), 0)
        error = self.error(prediction, target) * valid
        if self.reduction == "mean":
            return error.sum() / valid.sum().clamp(min=1)
        return error.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)


class DepthL1(ValidPixels):
    """|prediction − target| over the pixels whose depth is neither 0 nor NaN.

    ``prediction`` and ``target``: ``[batch, 1, height, width]``, in the unit of the target. (End-to-End
    Multi-Task Learning with Attention, 2019.)
    """

    def valid(self, target: Tensor) -> Tensor:
        """Return the mask of measured depths."""
        return (target > 0).squeeze(1)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """|prediction − target|."""
        return (prediction - target).abs().squeeze(1)


class NormalCosine(ValidPixels):
    """1 − cosine of the angle, over the pixels whose normal is neither zero nor NaN.

    ``prediction``: ``[batch, 3, height, width]`` of any length; ``target``: unit vectors of the same shape.
    In [0, 2], and with the gradient of MTAN's −⟨u, v⟩ (End-to-End Multi-Task Learning with Attention,
    2019), but 0 where the prediction is right, so that ratios of losses make sense.
    """

    def valid(self, target: Tensor) -> Tensor:
        """Return the mask of known normals."""
        return target.isfinite().all(dim=1) & (target != 0).any(dim=1)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """1 − cosine."""
        return 1 - nn.functional.cosine_similarity(prediction, target, dim=1, eps=1e-6)


class PixelCrossEntropy(Reduced):
    """Cross-entropy over the labelled pixels, defined also where none is labelled.

    As ``torch.nn.CrossEntropyLoss(ignore_index=…)``, whose mean is NaN on a batch without a labelled pixel
    and whose ``none`` gives pixels instead of examples. ``prediction``: logits ``[batch, classes, height,
    width]``; ``target``: ``[batch, height, width]``; ``weight``: one number per class, the mean is weighted
    then as torch's.
    """

    weight: Tensor | None

    def __init__(
        self, ignore_index: int = -1, weight: list[float] | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.ignore_index = ignore_index
        self.register_buffer("weight", None if weight is None else torch.tensor(weight), persistent=False)

    def count(self, target: Tensor) -> Tensor:
        """Return the number of pixels that the mean is over, or the sum of their classes' weights."""
        return self._counts(target).sum()

    def _counts(self, target: Tensor) -> Tensor:
        valid = target != self.ignore_index
        return valid.float() if self.weight is None else self.weight[target.where(valid, 0)] * valid

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss: a scalar, or ``[batch]`` with ``reduction="none"``."""
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

    ``prediction``: ``[batch, quantiles]``; ``target``: ``[batch]`` or ``[batch, 1]``. A task of it says
    ``loss_checks_shapes: true``.

    Args:
        quantiles: Numbers in (0, 1), one for each column of the prediction.

    Raises:
        ValueError: If a quantile is not in (0, 1); when called, if the shapes are others.
    """

    quantiles: Tensor

    def __init__(self, quantiles: Sequence[float]) -> None:
        super().__init__()
        if not quantiles or not all(0 < q < 1 for q in quantiles):
            raise ValueError(f"tasks.*.loss.quantiles are numbers between 0 and 1, not {list(quantiles)}.")
        self.register_buffer("quantiles", torch.tensor(quantiles), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        wanted = (len(target), len(self.quantiles))
        if prediction.shape != wanted or target.numel() != len(target):
            raise ValueError(
                f"Pinball got predictions of shape {list(prediction.shape)} for targets of shape {list(target.shape)} "
                f"and {len(self.quantiles)} quantiles; make tasks.*.head as wide as the quantiles, of one number."
            )
        error = target.view(-1, 1) - prediction
        return torch.maximum(self.quantiles * error, (self.quantiles - 1) * error).mean()
