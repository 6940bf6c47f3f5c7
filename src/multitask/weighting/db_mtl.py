"""DB-MTL: losses and gradients both balanced."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import JacobianMethod
from multitask.weighting.present import Kind
from multitask.weighting.tracked import fitting

_EPSILON = 1e-8


class DBMTL(JacobianMethod):
    """Gradients of log L, averaged over steps, all made as long as the longest, and added.

    The average is ĝ ← g + β/t^σ (ĝ − g), with t the steps of the task. The heads get the gradient of
    log L. The averages take the room of m copies of the trunk.

    "Dual-Balancing for Multi-Task Learning" (Lin et al., 2023), Algorithm 1.

    Args:
        tasks: The tasks' names.
        beta: How much of the average stays, below 1.
        beta_sigma: How fast that falls.
    """

    of_parameters = True
    remembers_rows = True
    per_task: ClassVar[dict[str, Kind]] = {"average": "vector", "steps": "vector"}
    average: Tensor | None
    steps: Tensor

    def __init__(self, tasks: Sequence[str], beta: float = 0.9, beta_sigma: float = 0.5) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ValueError(f"weighting.beta={beta} must be at least 0 and less than 1.")
        self.beta = beta
        self.beta_sigma = beta_sigma
        self.keep("steps", torch.zeros(len(tasks)))
        # Last, as it begins later: callbacks that average weights pair buffers by their order.
        self.keep("average", None)

    def combine(self, losses: Tensor, gradients: TaskGradients) -> None:
        """Average the gradients and put their balanced sum in place of the rows'."""
        jacobian = gradients.jacobian()
        rows = jacobian * self.head_weights(losses).to(jacobian)[:, None]
        self.steps = self.steps + 1
        stays = (self.beta / self.steps**self.beta_sigma).to(jacobian)
        average = rows + stays[:, None] * (fitting(self.average, jacobian, "db_mtl") - rows)
        norms = average.norm(dim=1)
        if not torch.isfinite(norms).all():
            raise FloatingPointError(
                "weighting=db_mtl met a gradient that is not finite; lower optimizer.lr."
            )
        self.average = average
        gradients.assign(torch.where(norms > 0, norms.max() / norms, 0.0) @ average)

    def head_weights(self, losses: Tensor) -> Tensor:
        """Return 1 / L, which makes the gradient of L that of log L."""
        if (losses < 0).any():
            raise ValueError(
                f"weighting=db_mtl takes the logarithm of the losses, and one is {float(losses.min()):.3g}; "
                "choose another weighting, or add a constant to that loss."
            )
        return 1 / (losses + _EPSILON)
