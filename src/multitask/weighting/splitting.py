"""First-order guess of the positive entries in the solutions of complementarity problems."""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.linalg.lapack import dpotrf, dpotri
from torch import Tensor

Array = Any  # np.ndarray | Tensor: the operators and methods used below mean the same on both.

# The iteration stops when a round changes at most this share of the rows.
_CHANGING = 0.25
_ROUND = 5
_ROUNDS = 12
_RELAXATION = 1.8


def likely_free(G: Array, Q: Array) -> Array:
    """Return where ``x`` is likely to be positive in ``x ≥ 0``, ``y = q + G x ≥ 0``, ``x · y = 0``.

    Each row of ``Q`` is one ``q``; ``Q`` and the result are ``[rows, m]``, and ``G``, positive definite, is ``[m, m]``.

    Runs ten to sixty iterations of the alternating direction method of multipliers with over-relaxation, on the matrix
    scaled to unit diagonal, with the geometric mean of its eigenvalues as the penalty. Its two variables are the
    positive and the negative part of ``s``, so that an iteration is ``s ← |s| M + a s + c``, one matrix product for all
    rows. The signs are correct for most rows long before the values converge.

    "Distributed Optimization and Statistical Learning via the Alternating Direction Method of Multipliers" (Boyd et
    al., 2011), Sections 3.4.3 and 5.2.
    """
    xp = namespace(Q)
    lengths = abs(G.diagonal()) ** 0.5
    scaled = G / lengths / lengths[:, None]
    penalty = xp.exp(xp.linalg.slogdet(scaled)[1] / len(G))
    scaled.reshape(-1)[:: len(G) + 1] += penalty
    M = _RELAXATION * inverse(scaled)
    c = (Q / lengths) @ -M
    M *= penalty
    M.reshape(-1)[:: len(G) + 1] -= 0.5 * _RELAXATION
    # Float32 suffices for the signs and takes half the time.
    M, c = xp.asarray(M, dtype=xp.float32), xp.asarray(c / abs(c).max(), dtype=xp.float32)
    s, size, product = 0.0 * c, 0.0 * c, 0.0 * c
    free = Q < 0.0
    for _ in range(_ROUNDS):
        for _ in range(_ROUND):
            xp.abs(s, out=size)
            xp.matmul(size, M, out=product)
            s *= 1.0 - 0.5 * _RELAXATION
            s += product
            s += c
        before, free = free, s > 0.0
        if (free != before).any(1).sum() <= _CHANGING * len(Q):
            break
    return free


def namespace(array: Array) -> ModuleType:
    """Return the module, ``torch`` or ``numpy``, whose functions take ``array``."""
    return torch if isinstance(array, Tensor) else np


def inverse(G: Array) -> Array:
    """Return the inverse of a positive definite matrix, in row-major order; NaN if it is not positive definite."""
    if isinstance(G, Tensor):
        factor, failed = torch.linalg.cholesky_ex(G)
        return torch.where(failed == 0, torch.cholesky_inverse(factor), torch.nan).contiguous()
    factor, failed = dpotrf(G, lower=0)
    triangle, _ = dpotri(factor, lower=0)
    if failed:
        return np.full_like(G, np.nan)
    whole = np.triu(triangle)
    return whole + np.triu(whole, 1).T
