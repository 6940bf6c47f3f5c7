"""The loss-balancing half of IMTL."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multitask.weighting.base import Scalarization
from multitask.weighting.task_parameters import TaskParameters


class IMTLL(Scalarization):
    """Σ exp(s) L − s, with a log-scale s for each task, trained by the optimizer.

    "Towards Impartial Multi-task Learning" (Liu et al., 2021), Algorithm 1.

    Args:
        tasks: The tasks' names.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.log_scale = TaskParameters(len(tasks))

    @property
    def linear(self) -> bool:
        """The weights are exp(s), whatever the losses are."""
        return True

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``."""
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
