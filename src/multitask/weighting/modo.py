"""MoDo: weights from two independent halves of the batch."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Rows, WeightedMethod
from multitask.weighting.gramian import checked, like
from multitask.weighting.present import Kind
from multitask.weighting.simplex import nearest_on_simplex


class MoDo(WeightedMethod):
    """λ ← Π(λ − γ (J₁ J₂ᵀ + ρ I) λ), with Π the projection onto the simplex and J₁, J₂ of the two halves.

    The combined gradient is that of the mean of the halves' losses, weighted by λ.

    "Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and
    Conflict-Avoidance" (Chen et al., 2023), Equation 2.9.

    Args:
        tasks: The tasks' names.
        gamma: Step size of the weights.
        rho: Regularization of the weights.
    """

    rows: Rows = "half"
    per_task: ClassVar[dict[str, Kind]] = {"shares": "share"}
    shares: Tensor

    def __init__(self, tasks: Sequence[str], gamma: float = 0.1, rho: float = 0.1) -> None:
        super().__init__()
        if gamma <= 0 or rho < 0:
            raise ValueError(
                f"weighting.gamma={gamma} must be positive and weighting.rho={rho} not negative."
            )
        self.gamma = gamma
        self.rho = rho
        self.register_buffer("shares", torch.full((len(tasks),), 1 / len(tasks)))

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weights of both halves' rows, shape ``[2k]``."""
        gramian = checked(gradients)
        k = len(gramian) // 2
        product = gramian[:k, k:].double().cpu().numpy()
        shares = self.shares.double().cpu().numpy()
        step = product @ shares + self.rho * shares
        shares = nearest_on_simplex(shares - self.gamma * step)
        self.shares = torch.as_tensor(shares).to(self.shares)
        return like(gramian, np.tile(shares / 2, 2))

    def reset(self) -> None:
        """Start again from equal weights."""
        self.shares.fill_(1 / len(self.shares))
