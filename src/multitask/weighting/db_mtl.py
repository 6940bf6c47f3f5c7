from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Layout
from multitask.weighting.gramian import checked
from multitask.weighting.tracked import Tracking

_EPSILON = 1e-8


class DBMTL(Tracking):
    """The sum of the averaged gradients of log L, all rescaled to the largest norm.

    The average is ĝ ← g + β/t^σ (ĝ − g), where t counts the steps of the task. The heads get the gradient of
    log L. A negative loss raises ``ValueError``.

    "Dual-Balancing for Multi-Task Learning" (Lin et al., 2023), Algorithm 1.

    Args:
        beta: β, the decay of the average, in [0, 1).
        beta_sigma: σ, the rate at which the decay decreases.
    """

    per_task: ClassVar[dict[str, Layout]] = {"average": "vector", "steps": "vector"}
    average: Tensor | None
    steps: Tensor

    def __init__(self, tasks: Sequence[str], beta: float = 0.9, beta_sigma: float = 0.5) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ValueError(f"weighting.beta={beta} must be at least 0 and less than 1.")
        self.beta = beta
        self.beta_sigma = beta_sigma
        self.keep("steps", torch.zeros(len(tasks)))
        self.keep("average", None)

    def combine(self, losses: Tensor, gradients: TaskGradients) -> None:
        jacobian = gradients.jacobian()
        rows = jacobian * self.head_weights(losses).to(jacobian)[:, None]
        self.steps = self.steps + 1
        decay = (self.beta / self.steps**self.beta_sigma).to(jacobian)
        average = rows + decay[:, None] * (self.fitting(self.average, jacobian) - rows)
        norms = checked(average.norm(dim=1))
        self.average = average
        gradients.assign(torch.where(norms > 0, norms.max() / norms, 0.0) @ average)

    def head_weights(self, losses: Tensor) -> Tensor:
        """Return 1 / L, which turns the gradient of L into that of log L."""
        if (losses < 0).any():
            raise ValueError(
                f"weighting=db_mtl takes the logarithm of the losses, and one is {float(losses.min()):.3g}; "
                "choose another weighting, or add a constant to that loss."
            )
        return 1 / (losses + _EPSILON)
