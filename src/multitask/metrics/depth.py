"""Absolute and relative error of depth."""

from typing import ClassVar

import torch
from torch import Tensor

from multitask.losses.pixels import same_shape
from multitask.metrics.pooling import Pooled


class _DepthError(Pooled):
    """Mean error over the valid pixels, whose target is neither 0 nor NaN."""

    higher_is_better = False
    relative: ClassVar[bool]

    def __init__(self, pooling: str = "pixels") -> None:
        super().__init__(type(self).__name__, 2, pooling)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the sum of errors and the number of valid pixels."""
        same_shape(type(self).__name__, prediction, target)
        valid = target > 0
        target = target[valid].double()
        errors = (prediction[valid].double() - target).abs()
        if self.relative:
            errors = errors / target
        return torch.stack([errors.sum(), valid.sum().double()])


class DepthAbsoluteError(_DepthError):
    """Mean of |prediction − target| for depths ``[batch, 1, height, width]``, in the target's unit."""

    relative = False


class DepthRelativeError(_DepthError):
    """Mean of |prediction − target| / target for depths ``[batch, 1, height, width]`` in the same unit."""

    relative = True
