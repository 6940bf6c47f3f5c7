"""Linear complementarity problems with one positive definite matrix and many right-hand sides.

The same code runs on NumPy arrays, which are much faster for small problems on the CPU, and on tensors, which stay on
their device.
"""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.linalg.lapack import dposv, dpotrf
from scipy.optimize import nnls
from threadpoolctl import ThreadpoolController
from torch import Tensor

from multitask.weighting.splitting import Array, inverse, likely_free, namespace

# Up to this size, the full systems of all rows are solved at once, and guessing the sets does not pay off.
MOST_AT_ONCE = 16
# Exchanges of all wrong signs before a row is left to the active-set method.
_EXCHANGES = 3
# The same for larger systems; from guessed sets one or two are typical.
_LATE_EXCHANGES = 6
# Elements of the batch of systems that a device solves at once (256 MiB of float64).
_LARGEST_BATCH = 2**25


def solve(G: Array, U: Array, Q: Array, tolerance: float) -> tuple[Array, Array | None]:
    """Return the ``x ≥ 0`` with ``y = G (u + x) ≥ 0`` and ``x · y = 0`` for each row ``u`` of ``U``.

    These are the optimality conditions of minimizing ``wᵀG w`` over ``w = u + x ≥ u``. The solution is exact up to
    rounding, since ``x`` solves a linear system on its positive (*free*) entries. At first these are the negative
    entries of ``G u``, or for large problems those guessed by a first-order method. All wrong signs of all rows are
    exchanged at once (block principal pivoting); rows that remain unsolved after a few exchanges are solved one by one
    by an active-set method, which always terminates.

    Args:
        G: Positive definite, shape ``[m, m]``, float64.
        U: Shape ``[rows, m]``, float64.
        Q: ``U G``.
        tolerance: Largest ``|min(x, y)|`` of a solution, relative to ``max |G u| + max |x|``.

    Returns:
        The solutions, shape ``[rows, m]``, and a mask of the rows not solved to the tolerance, ``None`` if all are.

    "A comparison of block pivoting and interior-point algorithms for linear least squares problems with
    nonnegative variables" (Portugal, Júdice and Vicente, 1994); "Solving Least Squares Problems" (Lawson and
    Hanson, 1974).
    """
    if len(G) <= MOST_AT_ONCE and namespace(Q) is np:
        X = _exchange_at_once(G, Q, tolerance)
    else:
        X = _exchange_by_row(G, U, Q, tolerance)
    unsolved = _unsolved(X, G, Q, tolerance)
    if unsolved is not None:
        X[unsolved] = _by_active_set(G, U[unsolved])
        unsolved = _unsolved(X, G, Q, tolerance)
    return X, unsolved


def _unsolved(X: Array, G: Array, Q: Array, tolerance: float) -> Array | None:
    """Return a mask of the rows that violate the optimality conditions; ``None`` if none does."""
    residual = namespace(Q).minimum(X, Q + X @ G)
    strictest = tolerance * _row_maxima(Q).min()
    if -strictest <= residual.min() and residual.max() <= strictest:  # False also where one is NaN
        return None
    allowed = tolerance * (_row_maxima(abs(Q)) + _row_maxima(X))
    unsolved = ~(_row_maxima(abs(residual)) <= allowed)
    return unsolved if bool(unsolved.any()) else None


def _exchange_at_once(G: np.ndarray, Q: np.ndarray, tolerance: float) -> np.ndarray:
    """Pivot in all rows, even solved ones: for few tasks, separating them takes longer."""
    right, slack = -Q[:, :, None], -tolerance * Q.max()
    identity = _negative_identity(len(G))
    # Signs after raising each negative entry to zero on its own: a better guess than the signs of Q.
    diagonal = G.diagonal()
    alone = np.maximum(right[:, :, 0], 0.0)
    exchanged = Q + (alone / diagonal) @ G < alone
    for _ in range(_EXCHANGES):
        free = exchanged
        # Solve q + G x − y = 0 for the free entries of x and the other entries of y.
        try:
            signed = np.linalg.solve(np.where(free[:, None], G, identity), right)[:, :, 0]
        except np.linalg.LinAlgError:  # exactly singular
            signed = np.full_like(Q, np.nan)
        wrong = signed < slack
        if not wrong.any():
            break
        exchanged = free ^ wrong
    return np.maximum(signed, 0.0) * free


def _exchange_by_row(G: Array, u: Array, q: Array, tolerance: float) -> Array:
    """Pivot in the unsolved rows, from guessed sets if pivoting is expensive."""
    xp = namespace(q)
    m = len(G)
    X, slack = 0.0 * q, -tolerance * _row_maxima(abs(q))[:, None]
    rows = xp.where(slack <= 0.0)[0]
    free = q < 0.0
    sizes = free.sum(1)
    guess_at = int(4 * xp.minimum(sizes, m - sizes).max() <= m)
    solve_on = _on_device if xp is torch else _on_processor
    for exchange in range(_LATE_EXCHANGES):
        if exchange == guess_at:
            free = likely_free(G, q)
        x = solve_on(free, G, u, q)
        wrong = xp.where(free, x, q + x @ G) < slack
        unsolved = wrong.any(1)
        X[rows] = x * (free & (x > 0.0))
        if not bool(unsolved.any()):
            break
        rows, u, q, free, slack = (part[unsolved] for part in (rows, u, q, free ^ wrong, slack))
    return X


def one_thread() -> AbstractContextManager[Any]:
    """Limit BLAS to one thread, since waking threads takes longer than solving a small system."""
    return _libraries().limit(limits=1)


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@cache
def _negative_identity(m: int) -> np.ndarray:
    return -np.eye(m)


def _on_processor(free: np.ndarray, G: np.ndarray, u: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Solve ``G x = −q`` on the free entries of each row, with zeros elsewhere; NaN if that fails."""
    # If most entries are free, the system of the others is smaller: solve G⁻¹ y = u there, with y zero on the free
    # entries; then x = G⁻¹ y − u.
    m = len(G)
    many = (free.sum(1) > m // 2)[:, None]
    inverted = inverse(G) if many.any() else G
    chosen, right = free ^ many, np.where(many, u, -q)
    # Exact for a single chosen entry.
    values = right * chosen / np.where(many, inverted.diagonal(), G.diagonal())
    rows, part = np.empty((m, m)), np.empty(m * m)  # reused, since allocating is slow
    for row in (chosen.sum(1) > 1).nonzero()[0]:
        places = chosen[row].nonzero()[0]
        k = len(places)
        (inverted if many[row, 0] else G).take(places, 0, rows[:k], "clip")
        system = rows[:k].take(places, 1, part[: k * k].reshape(k, k), "clip")
        # The transpose of the symmetric system is in Fortran order and can be overwritten.
        _, solution, failed = dposv(system.T, right[row].take(places), lower=1, overwrite_a=1)
        values[row, places] = np.nan if failed else solution
    return np.where(many, (values @ inverted - u) * free, values)


def _on_device(free: Tensor, G: Tensor, u: Tensor, q: Tensor) -> Tensor:
    identity = torch.eye(len(G), dtype=G.dtype, device=G.device)
    size = max(1, _LARGEST_BATCH // G.numel())
    parts = []
    for f, p in zip(free.split(size), q.split(size), strict=True):
        matrices = torch.where(f[:, :, None] & f[:, None, :], G, identity)
        factors, failed = torch.linalg.cholesky_ex(matrices)
        x = torch.cholesky_solve((-p * f)[:, :, None], factors)[:, :, 0]
        parts.append(torch.where(failed[:, None] == 0, x, torch.nan))
    return torch.cat(parts)


def _by_active_set(G: Array, U: Array) -> Array:
    """Solve ``min ‖R (u + x)‖`` over ``x ≥ 0`` with ``G = RᵀR`` for each row, on the CPU; NaN if that fails."""
    if isinstance(U, Tensor):
        return torch.as_tensor(_by_active_set(G.cpu().numpy(), U.cpu().numpy())).to(U)
    R, failed = dpotrf(G, lower=0, clean=1)
    if failed:
        return np.full_like(U, np.nan)
    try:
        return np.array([nnls(R, target)[0] for target in -(U @ R.T)])
    except (RuntimeError, ValueError):  # too many iterations; not finite
        return np.full_like(U, np.nan)


def _row_maxima(array: Array) -> Array:
    return array.amax(1) if isinstance(array, Tensor) else array.max(1)
