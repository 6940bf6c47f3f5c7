from typing import Literal

import numpy as np
from torch import Tensor

from multitask.weighting.gramian import Array, CosineMethod
from multitask.weighting.simplex import least
from multitask.weighting.solver_stats import SolverStats

Normalization = Literal["none", "l2", "loss", "loss+"]


class MGDA(CosineMethod):
    """The convex combination of the (normalized) gradients with the smallest norm.

    It is a descent direction for every loss, or zero if the parameters are Pareto stationary. It is zero if a
    gradient is zero. The quadratic program is solved exactly, instead of by the paper's Frank-Wolfe iteration,
    which converges to the same point.

    ``normalization`` divides each gradient by nothing (``none``), its norm (``l2``), its loss (``loss``), which must be
    above zero, or both (``loss+``), as in the authors' code. The result combines the normalized gradients, so that it
    remains a descent direction for every loss.

    "Multi-Task Learning as Multi-Objective Optimization" (Sener & Koltun, 2018).
    """

    def __init__(self, normalization: Normalization = "none") -> None:
        super().__init__()
        if normalization not in ("none", "l2", "loss", "loss+"):
            raise ValueError(
                f"weighting.normalization={normalization} is unknown; choose none, l2, loss or loss+."
            )
        self.normalization = normalization
        self.solver = SolverStats("mgda")

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        divisors = self._divisors(losses, norms)
        with self.solver.timed():
            return shortest(C, norms / divisors, ridge) / divisors

    def _divisors(self, losses: Tensor, norms: Array) -> Array:
        divisors = np.ones_like(norms)
        if self.normalization in ("loss", "loss+"):
            sizes = losses.double().cpu().numpy()
            if (sizes <= 0).any():
                raise ValueError(
                    f"weighting.normalization={self.normalization} needs losses above zero, and one is "
                    f"{sizes.min():.3g}; set weighting.normalization=l2."
                )
            divisors = divisors * sizes
        if self.normalization in ("l2", "loss+"):
            divisors = divisors * np.where(norms > 0, norms, 1.0)
        return divisors


def shortest(C: Array, lengths: Array, ridge: float) -> Array:
    """Return the weights of the shortest convex combination of vectors with cosines ``C``, shape ``[k]``."""
    zero = lengths == 0
    if zero.any():
        return zero / zero.sum()
    shares = lengths.min() / lengths
    alpha = shares * least(C, shares, np.zeros_like(shares), ridge)
    return alpha / alpha.sum()
