"""The residual of an equation that the prediction has to satisfy."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from multitask.seen import Seen


class Poisson(nn.Module):
    """The squared residual of u″ + π² sin(πx) = 0, whose solution with u(±1) = 0 is sin(πx).

    Args:
        task: The task whose prediction is u, ``[batch, 1]``, of inputs x, ``[batch, 1]``.
    """

    derivatives: ClassVar[bool] = True

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task

    def forward(self, seen: Seen) -> Tensor:
        """Return the squared residual at each point, ``[batch]``."""
        x = seen.inputs
        assert isinstance(x, Tensor)
        second = seen.derivative(seen.derivative(seen.predictions[self.task]))
        return (second + math.pi**2 * torch.sin(math.pi * x)).square().flatten()
