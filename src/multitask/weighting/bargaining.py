"""Nash-MTL and FairGrad."""

import numpy as np
from torch import Tensor

from multitask.weighting.gramian import Array, CosineMethod
from multitask.weighting.solver_stats import SolverStats


class NashMTL(CosineMethod):
    """The weights α with G α = 1 / α, the Nash bargaining solution.

    The combined gradient has norm √k at any scale of the losses, and is rescaled to ``max_norm`` if it is longer, as in
    the authors' code; 0 means no limit. The equation is solved exactly, instead of by the paper's sequence of convex
    programs that converges to the same point. A task whose gradient is zero has weight zero.

    "Multi-Task Learning as a Bargaining Game" (Navon et al., 2022), Algorithm 1.
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        super().__init__()
        if max_norm < 0:
            raise ValueError(f"weighting.max_norm={max_norm} must not be negative.")
        self.max_norm = max_norm
        self.solver = SolverStats("nash_mtl")

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        weights = _weights(C, norms, 1.0, ridge, self.solver)
        units = weights * norms
        length = np.sqrt(max(float(units @ C @ units), 0.0))
        return weights * self.max_norm / length if self.max_norm and length > self.max_norm else weights


class FairGrad(CosineMethod):
    """The weights w with G w = w^(−1/α), α ≥ 0.

    Larger α favours the tasks that gain least: α = 0 is the mean, α = 1 proportional fairness (Nash-MTL without
    maximum norm), and α → ∞ max-min fairness. The equation is solved exactly. A task whose gradient is zero has
    weight zero.

    "Fair Resource Allocation in Multi-Task Learning" (Ban & Ji, 2024), Equation 4.
    """

    def __init__(self, alpha: float = 2.0) -> None:
        super().__init__()
        if alpha < 0:
            raise ValueError(f"weighting.alpha={alpha} must not be negative.")
        self.alpha = alpha
        self.solver = SolverStats("fairgrad")

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        if self.alpha == 0:
            return np.full(len(C), 1 / len(C))
        return _weights(C, norms, 1 / self.alpha, ridge, self.solver)


def _weights(C: Array, norms: Array, power: float, ridge: float, solver: SolverStats) -> Array:
    """Return the w with G w = w^(−power), zero for a row of zeros."""
    weights = np.zeros(len(C))
    moving = norms > 0
    if moving.any():
        size = norms[moving]
        # Substituting w = v / ‖g‖ gives the equation for the cosines with right-hand side ‖g‖^(power − 1).
        with solver.timed():
            v = bargain(C[np.ix_(moving, moving)], size ** (power - 1), power, ridge, solver)
        weights[moving] = v / size
    return weights


def bargain(C: Array, right: Array, power: float, ridge: float, stats: SolverStats) -> Array:
    """Return the unique v > 0 with (C + ridge I) v = right · v^(−power), shape ``[k]``.

    It minimizes the strictly convex ½ vᵀCv − Σ right v^(1 − power) / (1 − power) (with a logarithm for power 1), by
    Newton's method with line search in float64. ``stats`` counts a failure if it is not solved to 1e-6.

    ``C``, ``[k, k]``, are cosines of nonzero gradients, which can cancel, but not with a ridge; ``right``, ``[k]``, and
    ``power`` are positive.
    """
    C = C + max(ridge, 1e-12) * np.eye(len(C))
    v = right ** (1 / (1 + power))
    present, rounding = _cost(C, right, power, v)
    best, least, idle = v, np.inf, 0
    for _ in range(300):
        pull = right * v ** (1 - power)
        # In units of v, so that weights of very different size are equally accurate.
        residual = v * (C @ v) - pull
        wrong = float((np.abs(residual) / (v * (np.abs(C) @ v) + pull)).max())
        idle = 0 if wrong < 0.9 * least else idle + 1
        if wrong < least:
            best, least = v, wrong
        step = -np.linalg.solve(C * np.outer(v, v) + np.diag(power * pull), residual)
        gain = -float(residual @ step)
        if wrong <= 1e-14 or not np.isfinite(gain) or (gain <= rounding and idle > 100):
            break
        size = min(1.0, 0.95 / max(-float(step.min()), 1e-300))
        while True:
            trial = v * (1 + size * step)
            value, rounding = _cost(C, right, power, trial)
            # A gain below rounding cannot be measured: take the full Newton step.
            if value <= present - 1e-4 * size * gain or gain <= rounding or size < 1e-10:
                break
            size /= 2
        v, present = trial, value
    if not least <= 1e-6:
        stats.failed(f"the equation is solved to {least:.1e} only")
    return best


def _cost(C: Array, right: Array, power: float, v: Array) -> tuple[float, float]:
    """Return the objective and a bound on its rounding error."""
    quadratic = 0.5 * float(v @ C @ v)
    utility = float(right @ (np.log(v) if power == 1 else v ** (1 - power) / (1 - power)))
    # If gradients cancel, so do the terms of the quadratic.
    terms = float(v @ np.abs(C) @ v) + abs(utility)
    return quadratic - utility, 1e-15 * terms
