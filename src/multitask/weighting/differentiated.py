"""A scalarization among the Jacobian methods, for the wrappers around those."""

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Scalarization, WeightedMethod
from multitask.weighting.wrapper import Around


class Differentiated(Around[Scalarization], WeightedMethod):
    """Weights the rows by the scalar's derivatives by the losses: the same update, at one gradient per task.

    Args:
        method: The scalarization.
    """

    def __init__(self, method: Scalarization) -> None:
        super().__init__(method)
        self._weights: Tensor | None = None

    def head_weights(self, losses: Tensor) -> Tensor:
        """Return the derivatives, kept for the rows: random ones must be the same for both."""
        self._weights = self._derivatives(losses)
        return self._weights

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the derivatives, shape ``[k]``."""
        weights = self._derivatives(losses) if self._weights is None else self._weights
        self._weights = None
        return weights

    def own_loss(self, losses: Tensor) -> Tensor | None:
        """Return the scalar itself where it has parameters."""
        return self.method(losses) if any(True for _ in self.method.parameters()) else None

    @torch.enable_grad()
    def _derivatives(self, losses: Tensor) -> Tensor:
        leaf = losses.detach().clone().requires_grad_()
        return torch.autograd.grad(self.method(leaf), leaf)[0]
