"""Quadratic programs over combinations of gradients, in a form that no scale of the losses spoils."""

import numpy as np
import quadprog

from multitask.weighting.gramian import Array


def least(C: Array, shares: Array, linear: Array, ridge: float) -> Array:
    """Return the β ≥ 0 with sharesᵀβ = 1 that has the least ½ βᵀCβ + linearᵀβ, shape ``[k]``.

    Args:
        C: Cosines of the gradients, shape ``[k, k]``.
        shares: Positive, shape ``[k]``.
        linear: Shape ``[k]``.
        ridge: Added to the diagonal of ``C``, so that rounding cannot make it indefinite.

    Raises:
        ValueError: If the program cannot be solved.
    """
    k = len(C)
    constraints = np.concatenate([shares[:, None], np.eye(k)], 1)
    bounds = np.zeros(k + 1)
    bounds[0] = 1.0
    beta = quadprog.solve_qp(C + ridge * np.eye(k), -linear, constraints, bounds, meq=1)[0]
    return np.clip(beta, 0.0, None)
