"""A scalarization among the Jacobian methods, for the wrappers around those."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Scalarization, WeightedMethod


class Differentiated(WeightedMethod):
    """Weights the rows by the scalar's derivatives by the losses: the same update, at a gradient a task.

    Args:
        method: The scalarization.
    """

    def __init__(self, method: Scalarization) -> None:
        super().__init__()
        self.method = method
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

    def observe(self, losses: Tensor) -> None:
        """Show the scalarization the losses of the step."""
        self.method.observe(losses)

    def reset(self) -> None:
        """Reset the scalarization."""
        self.method.reset()

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        """Let the scalarization see the losses after the step."""
        self.method.after_step(recompute)

    def on_epoch_end(self) -> None:
        """Close the scalarization's epoch."""
        self.method.on_epoch_end()

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """Return the scalarization's own parameters of a task."""
        return self.method.parameters_of(task)

    def figures(self) -> dict[str, Tensor]:
        """Return the scalarization's numbers worth a curve."""
        return self.method.figures()

    @torch.enable_grad()
    def _derivatives(self, losses: Tensor) -> Tensor:
        leaf = losses.detach().clone().requires_grad_()
        return torch.autograd.grad(self.method(leaf), leaf)[0]
