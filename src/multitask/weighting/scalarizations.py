"""Short scalarizations."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from multitask.weighting.base import Layout, Scalarization
from multitask.weighting.task_parameters import Learned


class SI(Scalarization):
    """Σ log L, the scale-invariant baseline of "Multi-Task Learning as a Bargaining Game" (Navon et al., 2022).

    A loss that is not above zero raises ``ValueError``.
    """

    def forward(self, losses: Tensor) -> Tensor:
        return torch.log(positive(losses, "si")).sum()


class GLS(Scalarization):
    """(Π L)^(1/k); a loss that is not above zero raises ``ValueError``.

    "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning" (Chennupati et
    al., 2019).
    """

    def forward(self, losses: Tensor) -> Tensor:
        return torch.exp(torch.log(positive(losses, "gls")).mean())


class LossBalanced(Scalarization):
    """Mean of L / L̄, where L̄ is L without gradient, so that each task contributes a loss of one.

    The gradient is that of the mean of log L. A loss that is not above zero raises ``ValueError``.
    """

    def forward(self, losses: Tensor) -> Tensor:
        return (losses / positive(losses.detach(), "loss_balanced")).mean()


def positive(losses: Tensor, method: str) -> Tensor:
    """Return the losses unchanged; raise ``ValueError`` if one is not above zero."""
    if (losses <= 0).any():
        raise ValueError(
            f"weighting={method} needs losses above zero, and one is {float(losses.detach().min()):.3g}; "
            "choose another weighting, or add a constant to that loss."
        )
    return losses


class COSMOS(Scalarization):
    """Σ r L − λ cos(r, L), λ ≥ 0, with the preference r: ``weights``, shape ``[m]``, normalized to sum one.

    "Scalable Pareto Front Approximation for Deep Multi-Objective Learning" (Ruchte & Grabocka, 2021), Equation 6,
    without its network that is conditioned on the preference.
    """

    per_task: ClassVar[dict[str, Layout]] = {"preference": "share"}
    preference: Tensor

    def __init__(self, lambda_: float, weights: Tensor) -> None:
        super().__init__()
        if lambda_ < 0:
            raise ValueError(f"weighting.lambda_={lambda_} must not be negative.")
        if (weights < 0).any() or weights.sum() <= 0:
            raise ValueError(f"weighting.weights={weights.tolist()} must not be negative, nor all zero.")
        self.lambda_ = lambda_
        self.register_buffer("preference", weights / weights.sum(), persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        r = self.preference.to(losses)
        return (r * losses).sum() - self.lambda_ * cosine_similarity(r, losses, dim=0)


class UW(Learned, Scalarization):
    """Σ ½ exp(−s) L + ½ s, with one log-variance s per task, trained by the optimizer.

    "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics" (Kendall, Gal & Cipolla,
    2018).
    """

    learned = "log_variance"
    linear = True

    def forward(self, losses: Tensor) -> Tensor:
        s = self.numbers()
        return 0.5 * (torch.exp(-s) * losses + s).sum()
