"""FairGrad: α-fair allocation."""

import numpy as np
from torch import Tensor

from multitask.weighting.bargaining import bargain
from multitask.weighting.gramian import Array, CosineMethod
from multitask.weighting.tally import Tally


class FairGrad(CosineMethod):
    """The weights w with G w = w^(−1/α).

    The larger α, the more the tasks that gain least count; α = 1 is proportional fairness (Nash-MTL
    without a largest norm), α → ∞ the best worst case, and α = 0 the mean. The equation is solved exactly.
    A task whose gradient is zero can be given nothing: its weight is zero.

    "Fair Resource Allocation in Multi-Task Learning" (Ban & Ji, 2024), Equation 4.

    Args:
        alpha: The kind of fairness.
    """

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        if alpha < 0:
            raise ValueError(f"weighting.alpha={alpha} must not be negative.")
        self.alpha = alpha
        self.solver = Tally("fairgrad")

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        """Return the fair weights."""
        if self.alpha == 0:
            return np.full(len(C), 1 / len(C))
        weights = np.zeros(len(C))
        moving = norms > 0
        if moving.any():
            power = 1 / self.alpha
            size = norms[moving]
            # With w = v / ‖g‖ the equation is that of the cosines, its right side ‖g‖^(power − 1).
            with self.solver.timed():
                v = bargain(C[np.ix_(moving, moving)], size ** (power - 1), power, ridge, self.solver)
            weights[moving] = v / size
        return weights
