"""Geometric mean of the losses."""

import torch
from torch import Tensor

from multitask.weighting.base import Scalarization
from multitask.weighting.positive import positive


class GLS(Scalarization):
    """(Π L)^(1/k).

    "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning"
    (Chennupati et al., 2019).
    """

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``, all above zero."""
        return torch.exp(torch.log(positive(losses, "gls")).mean())
