"""The trunk of a toy problem: the point itself."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Point(nn.Module):
    """One point, the only parameter: displacements ``[batch, d]`` → the point displaced ``[batch, d]``.

    Args:
        start: The start of the point, d numbers.
    """

    def __init__(self, start: Sequence[float]) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor([float(x) for x in start]))

    def forward(self, displacements: Tensor) -> Tensor:
        """Return the point, once per example."""
        return self.point + displacements
