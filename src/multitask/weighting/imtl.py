"""IMTL whole: its loss balance for the heads, its gradient balance for the trunk."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchjd.aggregation import IMTLGWeighting

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import WeightedMethod
from multitask.weighting.gramian import checked, over_trace
from multitask.weighting.task_parameters import TaskParameters


class IMTL(WeightedMethod):
    """Losses scaled as in IMTL-L, their gradients in the trunk combined as in IMTL-G.

    The scaled losses are exp(s) L − s. The heads and s are trained by their sum; the trunk by the
    combination of their gradients that has the same projection on each of them.

    "Towards Impartial Multi-task Learning" (Liu et al., 2021), Algorithm 1.

    Args:
        tasks: The tasks' names.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.log_scale = TaskParameters(len(tasks))
        self.balance = IMTLGWeighting()

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the gradient balance's weights times the scales."""
        gramian = checked(gradients)
        scale = torch.exp(self.log_scale().detach()).to(gramian.dtype)
        return self.balance(over_trace(gramian * torch.outer(scale, scale))) * scale

    def head_weights(self, losses: Tensor) -> Tensor:
        """Return the scales."""
        return torch.exp(self.log_scale().detach())

    def own_loss(self, losses: Tensor) -> Tensor:
        """Return Σ exp(s) L − s."""
        s = self.log_scale()
        return (torch.exp(s) * losses - s).sum()

    def reset(self) -> None:
        """Set the log-scales to zero."""
        self.log_scale.reset()

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """Return the task's log-scale."""
        return [self.log_scale.values[task]]

    def figures(self) -> dict[str, Tensor]:
        """Return the log-scales."""
        return {"log_scale": self.log_scale().detach()}
