"""Gradients of losses that were scaled against underflow, seen unscaled by the combiner."""

import torch
from torch import Tensor

from multitask.autodiff.gradients import TaskGradients


class Unscaled(TaskGradients):
    """Shows a combiner unscaled gradients while ``.grad`` stays scaled, for the loss scaler to unscale.

    Args:
        gradients: Gradients of losses multiplied by ``scale``.
        scale: The factor, a scalar tensor.
    """

    def __init__(self, gradients: TaskGradients, scale: Tensor) -> None:
        self._gradients = gradients
        self._scale = scale

    def gramian(self) -> Tensor:
        """Return the unscaled Gramian; divided twice, since the square of the scale may overflow."""
        return self._gradients.gramian() / self._scale / self._scale

    def combine(self, weights: Tensor) -> None:
        """Add the scaled combination."""
        self._gradients.combine(weights)

    def jacobian(self) -> Tensor:
        """Return the unscaled Jacobian."""
        return self._gradients.jacobian() / self._scale

    def assign(self, vector: Tensor) -> None:
        """Add the vector, scaled."""
        self._gradients.assign(vector * self._scale)


def poison(gradients: TaskGradients, k: int, like: Tensor) -> None:
    """Write infinities, so that the loss scaler skips the step and lowers its scale."""
    gradients.combine(torch.full((k,), torch.inf, dtype=like.dtype, device=like.device))
