"""Scale-invariant sum of the losses."""

import torch
from torch import Tensor

from multitask.weighting.base import Scalarization
from multitask.weighting.positive import positive


class SI(Scalarization):
    """Σ log L: no loss's unit matters.

    The baseline of that name in "Multi-Task Learning as a Bargaining Game" (Navon et al., 2022).
    """

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``, all above zero."""
        return torch.log(positive(losses, "si")).sum()
