"""Nash-MTL: the bargaining solution."""

import numpy as np
from torch import Tensor

from multitask.weighting.bargaining import bargain
from multitask.weighting.gramian import Array, CosineMethod
from multitask.weighting.tally import Tally


class NashMTL(CosineMethod):
    """The weights α with G α = 1 / α: each task gains the same in proportion.

    The combined gradient has norm √k whatever the scale of the losses; one longer than ``max_norm`` is
    shortened to it, as in the authors' code. The equation is solved exactly, in place of the paper's
    sequence of convex programs that approaches the same point, and needs no other solver. A task whose
    gradient is zero has nothing to bargain for: its weight is zero.

    "Multi-Task Learning as a Bargaining Game" (Navon et al., 2022), Algorithm 1.

    Args:
        max_norm: Largest norm of the combined gradient; 0 for any.
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        super().__init__()
        if max_norm < 0:
            raise ValueError(f"weighting.max_norm={max_norm} must not be negative.")
        self.max_norm = max_norm
        self.solver = Tally("nash_mtl")

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        """Return the bargaining weights."""
        weights = np.zeros(len(C))
        moving = norms > 0
        if moving.any():
            part = C[np.ix_(moving, moving)]
            with self.solver.timed():
                v = bargain(part, np.ones(len(part)), 1.0, ridge, self.solver)
            weights[moving] = v / norms[moving]
            length = np.sqrt(max(float(v @ part @ v), 0.0))
            if self.max_norm and length > self.max_norm:
                weights *= self.max_norm / length
        return weights
