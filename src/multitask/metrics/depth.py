"""Absolute and relative error of depth."""

from abc import abstractmethod

import torch
from torch import Tensor

from multitask.metrics.pooling import Pooled, same_shape


class _DepthError(Pooled):
    """Mean error over the pixels with a depth.

    ``prediction`` and ``target``: ``[batch, 1, height, width]`` in the target's unit. Pixels whose target
    is 0 or NaN are invalid.
    """

    is_differentiable = False
    higher_is_better = False

    def __init__(self, pooling: str = "pixels") -> None:
        super().__init__(type(self).__name__, 2, pooling)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Sum of the errors, and number of valid pixels."""
        same_shape(type(self).__name__, prediction, target)
        valid = target > 0
        target = target[valid].double()
        errors = self.error(prediction[valid].double(), target)
        return torch.stack([errors.sum(), valid.sum().double()])

    @abstractmethod
    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of each valid pixel."""

    def figure(self, sums: Tensor) -> Tensor:
        """Mean error."""
        return sums[0] / sums[1]


class DepthAbsoluteError(_DepthError):
    """Mean of |prediction − target|, in the target's unit."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """|prediction − target|."""
        return (prediction - target).abs()


class DepthRelativeError(_DepthError):
    """Mean of |prediction − target| / target, without unit."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """|prediction − target| / target."""
        return (prediction - target).abs() / target
