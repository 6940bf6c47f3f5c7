"""Shares moved by the product of the Jacobians of the batch's two halves."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Rows, WeightedMethod
from multitask.weighting.gramian import Array, checked, like
from multitask.weighting.present import Kind


class HalvesMethod(WeightedMethod):
    """A method with one share per task, which each step moves by ``J₁ J₂ᵀ`` of the two halves, in float64.

    Args:
        tasks: The tasks' names.
    """

    rows: Rows = "half"
    per_task: ClassVar[dict[str, Kind]] = {"shares": "share"}
    shares: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.keep("shares", torch.full((len(tasks),), 1 / len(tasks)))

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weights of both halves' rows, shape ``[2k]``."""
        gramian = checked(gradients)
        k = len(gramian) // 2
        product = gramian[:k, k:].double().cpu().numpy()
        shares, weights = self.move(product, self.shares.double().cpu().numpy())
        self.shares = torch.as_tensor(shares).to(self.shares)
        return like(gramian, np.tile(weights / 2, 2))

    @abstractmethod
    def move(self, product: Array, shares: Array) -> tuple[Array, Array]:
        """Return the new shares and the tasks' weights, both ``[k]``; ``product`` is ``[k, k]``."""
