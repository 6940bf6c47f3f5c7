"""The trunk of a toy problem: a trainable point."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Point(nn.Module):
    """A trainable point, initially ``start``, ``[d]``: displacements → displaced points, both ``[batch, d]``."""

    def __init__(self, start: Sequence[float]) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor([float(x) for x in start]))

    def forward(self, displacements: Tensor) -> Tensor:
        """Return the displaced point of each example."""
        return self.point + displacements
