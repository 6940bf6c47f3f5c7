"""Uncertainty weighting."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multitask.weighting.base import Scalarization
from multitask.weighting.task_parameters import TaskParameters


class UW(Scalarization):
    """Σ ½ exp(−s) L + ½ s, with a log-variance s for each task, trained by the optimizer.

    "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics" (Kendall,
    Gal & Cipolla, 2018).

    Args:
        tasks: The tasks' names.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.log_variance = TaskParameters(len(tasks))

    @property
    def linear(self) -> bool:
        """The weights are ½ exp(−s), whatever the losses are."""
        return True

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``."""
        s = self.log_variance()
        return 0.5 * (torch.exp(-s) * losses + s).sum()

    def reset(self) -> None:
        """Set the log-variances to zero."""
        self.log_variance.reset()

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """Return the task's log-variance."""
        return [self.log_variance.values[task]]

    def figures(self) -> dict[str, Tensor]:
        """Return the log-variances."""
        return {"log_variance": self.log_variance().detach()}
