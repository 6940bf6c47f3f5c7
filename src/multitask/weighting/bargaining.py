"""The equation that Nash-MTL and FairGrad solve."""

import numpy as np

from multitask.weighting.gramian import Array
from multitask.weighting.tally import Tally


def bargain(C: Array, right: Array, power: float, ridge: float, tally: Tally) -> Array:
    """Return the only v > 0 with C v = right · v^(−power), shape ``[k]``.

    It is the minimum of the strictly convex ½ vᵀCv − Σ right v^(1 − power) / (1 − power) (with a
    logarithm at power one), found by Newton's method with line search in float64.

    Args:
        C: Cosines of gradients of which none is zero, shape ``[k, k]``.
        right: Positive, shape ``[k]``.
        power: Positive.
        ridge: Added to the diagonal of ``C``: gradients that cancel have a solution too.
        tally: Counts a failure where the equation is not solved to 1e-6.
    """
    C = C + max(ridge, 1e-12) * np.eye(len(C))
    v = right ** (1 / (1 + power))
    present, rounding = _cost(C, right, power, v)
    best, least, idle = v, np.inf, 0
    for _ in range(300):
        pull = right * v ** (1 - power)
        # In units of v, so that weights of very different size are found equally well.
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
            # A gain below rounding cannot be seen: there Newton's step is taken as it is.
            if value <= present - 1e-4 * size * gain or gain <= rounding or size < 1e-10:
                break
            size /= 2
        v, present = trial, value
    if not least <= 1e-6:
        tally.failed(f"the equation is solved to {least:.1e} only")
    return best


def _cost(C: Array, right: Array, power: float, v: Array) -> tuple[float, float]:
    """Return what is minimized, and how far rounding may move it."""
    quadratic = 0.5 * float(v @ C @ v)
    utility = float(right @ (np.log(v) if power == 1 else v ** (1 - power) / (1 - power)))
    # Where gradients cancel, so do the terms of the quadratic.
    terms = float(v @ np.abs(C) @ v) + abs(utility)
    return quadratic - utility, 1e-15 * terms
