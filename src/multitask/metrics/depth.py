"""Absolute and relative error of depth."""

from abc import abstractmethod

import torch
from torch import Tensor

from multitask.metrics.pooling import Pooled, same_shape


class _DepthError(Pooled):
    """Mean error over the valid pixels, whose target is neither 0 nor NaN.

    ``prediction`` and ``target``: ``[batch, 1, height, width]`` in the same unit.
    """

    is_differentiable = False
    higher_is_better = False

    def __init__(self, pooling: str = "pixels") -> None:
        super().__init__(type(self).__name__, 2, pooling)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the sum of errors and the number of valid pixels."""
        same_shape(type(self).__name__, prediction, target)
        valid = target > 0
        target = target[valid].double()
        errors = self.error(prediction[valid].double(), target)
        return torch.stack([errors.sum(), valid.sum().double()])

    @abstractmethod
    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the error of each valid pixel."""


class DepthAbsoluteError(_DepthError):
    """Mean of |prediction − target|, in the target's unit."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return |prediction − target|."""
        return (prediction - target).abs()


class DepthRelativeError(_DepthError):
    """Mean of |prediction − target| / target, dimensionless."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return |prediction − target| / target."""
        return (prediction - target).abs() / target
