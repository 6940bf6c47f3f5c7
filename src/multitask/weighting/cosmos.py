"""The COSMOS scalarization."""

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from multitask.weighting.base import Scalarization
from multitask.weighting.present import Kind


class COSMOS(Scalarization):
    """Σ r L − λ cos(r, L), with the preference r on the simplex.

    "Scalable Pareto Front Approximation for Deep Multi-Objective Learning" (Ruchte & Grabocka, 2021),
    Equation 6, without its network that takes the preference as an input.

    Args:
        lambda_: How much losses in proportion to the preference are worth.
        weights: The preference, shape ``[m]``, of which only proportions count.
    """

    per_task: ClassVar[dict[str, Kind]] = {"preference": "share"}
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
        """Return the scalar to minimize; ``losses`` is ``[k]``."""
        r = self.preference.to(losses)
        return (r * losses).sum() - self.lambda_ * cosine_similarity(r, losses, dim=0)
