"""Uncertainty weighting."""

import torch
from torch import Tensor

from multitask.weighting.base import Scalarization
from multitask.weighting.task_parameters import Learned, TaskParameters


class UW(Learned, Scalarization):
    """Σ ½ exp(−s) L + ½ s, with a log-variance s for each task, trained by the optimizer.

    "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics" (Kendall,
    Gal & Cipolla, 2018).

    Args:
        tasks: The tasks' names.
    """

    learned = "log_variance"
    log_variance: TaskParameters

    @property
    def linear(self) -> bool:
        """The weights are ½ exp(−s), whatever the losses are."""
        return True

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``."""
        s = self.log_variance()
        return 0.5 * (torch.exp(-s) * losses + s).sum()
