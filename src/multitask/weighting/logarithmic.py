"""Scalarizations of log-losses, to which the losses' units make no difference."""

import torch
from torch import Tensor

from multitask.weighting.base import Scalarization


class SI(Scalarization):
    """Σ log L.

    The baseline of that name in "Multi-Task Learning as a Bargaining Game" (Navon et al., 2022).
    """

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``, all above zero."""
        return torch.log(positive(losses, "si")).sum()


class GLS(Scalarization):
    """(Π L)^(1/k).

    "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning"
    (Chennupati et al., 2019).
    """

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``, all above zero."""
        return torch.exp(torch.log(positive(losses, "gls")).mean())


class LossBalanced(Scalarization):
    """Mean of L / L̄, where L̄ is the value of L, not differentiated: each task contributes a loss of one.

    The direction is that of Σ log L, whatever the number of tasks with the size of one task's.
    """

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``, all above zero."""
        return (losses / positive(losses.detach(), "loss_balanced")).mean()


def positive(losses: Tensor, method: str) -> Tensor:
    """Return the losses as they are.

    Raises:
        ValueError: If one is zero or negative, where the method's gradient does not exist.
    """
    if (losses <= 0).any():
        raise ValueError(
            f"weighting={method} needs losses above zero, and one is {float(losses.detach().min()):.3g}; "
            "choose another weighting, or add a constant to that loss."
        )
    return losses
