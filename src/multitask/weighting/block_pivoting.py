"""Linear complementarity problems with one positive definite matrix and many right-hand sides.

Every row ``q`` of ``Q`` asks for the vector ``x`` with ``x ≥ 0``, ``y = q + G x ≥ 0`` and ``x · y = 0``: the
optimality conditions of minimizing ``½ xᵀG x + q·x`` over ``x ≥ 0``. The solution is exact up to rounding:
what is searched for is the set of the positive ``x``, and on that set ``x`` solves a linear system.

The same lines run on NumPy arrays, which on a CPU saves most of the time of small problems, and on tensors,
which stay on their device.
"""

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.linalg.lapack import dposv
from torch import Tensor

# Exchanges of all wrong signs at once that need not improve anything, before a row is watched.
_PATIENCE = 4
# Up to here one batched LU beats a loop over the rows; beyond, it counts that each row's system is smaller.
_LARGEST_BATCHED = 16
# Numbers in the batch of systems that a device solves at once (256 MiB of float64).
_LARGEST_BATCH = 2**25

Array = Any  # np.ndarray | Tensor: the operators and methods used below mean the same on both.


def namespace(array: Array) -> ModuleType:
    """Return the module, ``torch`` or ``numpy``, whose functions take ``array``."""
    return torch if isinstance(array, Tensor) else np


def _row_maxima(array: Array) -> Array:
    return array.amax(1) if isinstance(array, Tensor) else array.max(1)


def solve_by_pivoting(G: Array, Q: Array, tolerance: float) -> Array:
    """Solve the complementarity problem ``(G, q)`` for every row ``q`` of ``Q`` by block principal pivoting.

    Rows that four exchanges of all wrong signs leave unsolved exchange all only while that leaves fewer wrong
    than ever before, and otherwise the last wrong one, which ends for certain.

    :param G: Positive definite matrix, ``[m, m]``, float64, with trace of the order of one.
    :param Q: Right-hand sides, ``[rows, m]``, float64, of any size.
    :param tolerance: Largest ``|min(x, y)|`` of a solution, relative to ``max |q| + max |x|``.
    :return: The solutions, ``[rows, m]``. A row that could not be solved, because a part of ``G`` is not
        positive definite or no set was found in ``20 m`` exchanges, is filled with NaN.

    "A comparison of block pivoting and interior-point algorithms for linear least squares problems with
    nonnegative variables" (Portugal, Júdice and Vicente, 1994), with the sets of all rows exchanged at once.
    """
    xp = namespace(Q)
    q, free = Q, Q < 0.0  # where x may be positive and y is zero; elsewhere the reverse
    rows = None
    for exchange in range(20 * Q.shape[1]):
        x = _solve_on(free, G, q)
        y = q + x @ G
        slack = tolerance * (_row_maxima(abs(q)) + _row_maxima(abs(x)))
        unsolved = ~(_row_maxima(abs(xp.minimum(x, y))) <= slack)  # also where it is NaN
        if rows is None:
            if not bool(unsolved.any()):
                return x * (x > 0.0)  # the usual end for few tasks, without further ado
            X, rows = xp.nan * Q, xp.where(unsolved | True)[0]
            fewest = rows * 0 + Q.shape[1] + 1
        X[rows[~unsolved]] = x[~unsolved]
        wrong = xp.where(free, x, y) < -slack[:, None]
        count = wrong.sum(1)
        left = xp.where(unsolved & (count > 0))[0]  # unsolved, but with the right signs: hopeless
        if len(left) == 0:
            break
        if len(left) < len(rows):
            state = rows, q, free, wrong, count, fewest
            rows, q, free, wrong, count, fewest = (part[left] for part in state)
        if exchange >= _PATIENCE:
            last = wrong & (xp.cumsum(wrong, 1) == count[:, None])
            wrong = xp.where((count < fewest)[:, None], wrong, last)
            fewest = xp.where(count < fewest, count, fewest)
        free = free ^ wrong
    return X * ~(X < 0.0)


def _solve_on(free: Array, G: Array, q: Array) -> Array:
    """Solve ``G x = −q`` on each row's free variables, the others being zero; NaN where that fails."""
    if isinstance(q, Tensor):
        size = max(1, _LARGEST_BATCH // G.numel())
        parts = zip(free.split(size), q.split(size), strict=True)
        return torch.cat([_solve_tensors(f, G, p) for f, p in parts])
    if len(G) <= _LARGEST_BATCHED:
        return _solve_arrays(free, G, q)
    x = np.zeros_like(q)
    for row, mask in enumerate(free):
        chosen = mask.nonzero()[0]
        if len(chosen):
            # Transposed, the symmetric matrix is in Fortran's order already and can be overwritten.
            part = G.take(chosen, 0).take(chosen, 1).T
            _, solution, failed = dposv(part, -q[row, chosen], lower=1, overwrite_a=1)
            x[row, chosen] = np.nan if failed else solution
    return x


@cache
def _identity(m: int) -> np.ndarray:
    return np.eye(m)


def _solve_arrays(free: np.ndarray, G: np.ndarray, q: np.ndarray) -> np.ndarray:
    matrices = np.where(free[:, :, None] & free[:, None, :], G, _identity(len(G)))
    try:
        return np.linalg.solve(matrices, (-q * free)[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:  # exactly singular: the caller is told by NaN, as in the other cases
        return np.full_like(q, np.nan)


def _solve_tensors(free: Tensor, G: Tensor, q: Tensor) -> Tensor:
    identity = torch.eye(len(G), dtype=G.dtype, device=G.device)
    matrices = torch.where(free[:, :, None] & free[:, None, :], G, identity)
    factors, failed = torch.linalg.cholesky_ex(matrices)
    x = torch.cholesky_solve((-q * free)[:, :, None], factors)[:, :, 0]
    return torch.where(failed[:, None] == 0, x, torch.nan)
