"""Projection onto the simplex, and quadratic programs over it."""

import numpy as np
import quadprog
from torch import Tensor

from multitask.weighting.gramian import Array, like


def project_onto_simplex(vector: Tensor) -> Tensor:
    """Return the projection of ``vector`` onto the simplex, shape ``[k]``."""
    return like(vector, nearest_on_simplex(vector.detach().double().cpu().numpy()))


def nearest_on_simplex(vector: Array) -> Array:
    """Return the projection of ``vector`` onto the simplex, shape ``[k]``."""
    descending = -np.sort(-vector)
    shifts = (np.cumsum(descending) - 1) / np.arange(1, len(vector) + 1)
    # Shift by the value of the last rank whose entry remains positive.
    return np.clip(vector - shifts[np.nonzero(descending > shifts)[0][-1]], 0.0, None)


def least(C: Array, shares: Array, linear: Array, ridge: float) -> Array:
    """Return the β ≥ 0 with sharesᵀβ = 1 that minimizes ½ βᵀ(C + ridge I)β + linearᵀβ, shape ``[k]``.

    ``C`` is ``[k, k]``; ``shares``, all positive, and ``linear`` are ``[k]``.

    Raises:
        ValueError: If the program cannot be solved, since rounding made the matrix indefinite.
    """
    k = len(C)
    constraints = np.concatenate([shares[:, None], np.eye(k)], 1)
    bounds = np.zeros(k + 1)
    bounds[0] = 1.0
    beta = quadprog.solve_qp(C + ridge * np.eye(k), -linear, constraints, bounds, meq=1)[0]
    return np.clip(beta, 0.0, None)
