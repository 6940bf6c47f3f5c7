"""Exact projection onto the dual cone of the task gradients, for UPGrad and DualProj."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from operator import add, mul

import numpy as np
import quadprog
import torch
from torch import Tensor
from torchjd.linalg import DualConeProjector, PSDMatrix

from multitask.weighting.complementarity import MOST_AT_ONCE, Array, one_thread, solve
from multitask.weighting.gramian import not_finite

Matrix = list[list[float]]

# Up to this number of tasks, plain Python numbers are faster than the arrays of complementarity.py, where each
# operation costs more than the arithmetic of a row.
MOST_TASKS = 4
# Tolerance of the optimality conditions, relative to max |G u| + max |w − u|.
_TOLERANCE = 1e-12
_ROUNDING = {
    dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}


class ExactProjector(DualConeProjector):
    """Weights of the projection onto the dual cone of the task gradients, exact and scale-invariant.

    For every row ``u`` of ``U``, find the ``w ≥ u`` that minimizes ``wᵀ G w``, like torchjd's ``QuadprogProjector``
    with these differences:

    - the Gramian is always divided by its trace, so that scaling all losses does not change the weights; for a zero
      Gramian ``w = u``;
    - a row without conflict (``G u ≥ 0``) needs no solver, since ``w = u``;
    - up to four tasks are solved row by row in Python numbers, more tasks for all rows together by block pivoting;
    - it computes in float64, on the CPU or, for more than sixteen tasks, on the Gramian's CUDA device;
    - every solution is checked against the optimality conditions; rows that violate them are counted in ``failures``
      and solved again by quadprog.

    The statistics ``solves`` (calls), ``programs`` (rows with a conflict), ``failures`` and ``seconds`` (wall clock)
    are on the CPU.

    "Jacobian Descent For Multi-Objective Optimization" (Quinton and Rey, 2024), Proposition 1.

    Args:
        reg_eps: Added to the diagonal of the Gramian after division by its trace, so that it is positive definite;
            at least ``m`` times the epsilon of the Gramian's dtype is added.
    """

    def __init__(self, *, reg_eps: float = 1e-4) -> None:
        if not 0.0 <= reg_eps < math.inf:
            raise ValueError(f"reg_eps must be finite and not negative, but is {reg_eps}.")
        self.reg_eps = reg_eps
        self.solves = 0
        self.programs = 0
        self.failures = 0
        self.seconds = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reg_eps={self.reg_eps})"

    def __call__(self, U: Tensor, G: PSDMatrix) -> Tensor:
        """Return the weights of the projections, in the shape of ``U`` (``[..., m]``) and the dtype of ``G``.

        Raises:
            FloatingPointError: If the Gramian ``G``, ``[m, m]``, has an entry that is NaN or infinite.
            ValueError: If it is so indefinite that quadprog fails as well.
        """
        start = time.perf_counter()
        m = len(G)
        W: Tensor | None = None
        if m <= MOST_TASKS:
            rows = U.tolist() if U.ndim == 2 else U.reshape(-1, m).tolist()
            if (steps := self._steps_of_few(rows, G)) is not None:
                weights = [list(map(add, u, x)) for u, x in zip(rows, steps, strict=True)]
                W = torch.tensor(weights, dtype=G.dtype, device=G.device)
        else:
            vectors = _as_array(U).reshape(-1, m)
            if (steps := self._steps(vectors, G)) is not None:
                W = _as_tensor(vectors + steps, G)
        self._count(start)
        # A copy, since the result must not alias the caller's tensor.
        return U.detach().to(G, copy=True) if W is None else W.view(U.shape)

    def project_tasks(self, preferences: Sequence[float], G: PSDMatrix) -> Tensor:
        """Return the sum of the rows of ``projector(torch.diag(preferences), G)``, shape ``[m]``, in less time.

        It raises the same errors.
        """
        start = time.perf_counter()
        m = len(G)
        weights = preferences
        if m <= MOST_TASKS:
            rows = [[0.0] * m for _ in range(m)]
            for i, preference in enumerate(preferences):
                rows[i][i] = preference
            if (steps := self._steps_of_few(rows, G)) is not None:
                weights = list(map(sum, zip(preferences, *steps, strict=True)))
            W = torch.tensor(weights, dtype=G.dtype, device=G.device)
        else:
            vectors: Array = np.zeros((m, m))
            vectors.reshape(-1)[:: m + 1] = preferences
            if _stays_on_device(G):
                vectors = torch.from_numpy(vectors).to(G.device)
            steps = self._steps(vectors, G)
            W = _as_tensor((vectors if steps is None else vectors + steps).sum(0), G)
        self._count(start)
        return W

    def _count(self, start: float) -> None:
        self.solves += 1
        self.seconds += time.perf_counter() - start

    def _regularization(self, G: Tensor) -> float:
        return max(self.reg_eps, len(G) * _ROUNDING[G.dtype])

    def _steps_of_few(self, rows: Matrix, G: Tensor) -> Matrix | None:
        """Return ``w − u`` for every ``u``; ``None`` if all are zero."""
        gramian = G.tolist()
        trace = sum([row[i] for i, row in enumerate(gramian)])
        if _is_zero(trace, sum(map(sum, gramian)), G):
            return None
        gramian = [[value / trace for value in row] for row in gramian]
        regularization = self._regularization(G)
        for i, row in enumerate(gramian):
            row[i] += regularization
        steps = [[0.0] * len(u) for u in rows]
        conflicts = 0
        for i, u in enumerate(rows):
            q = _add(u, range(len(u)), gramian, [0.0] * len(u))
            if min(q) < 0.0:
                conflicts += 1
                x = solve_row(gramian, q, _TOLERANCE)
                if x is None:
                    self.failures += 1
                    (x,) = self._solve_by_quadprog(np.array(gramian), np.array([q])).tolist()
                steps[i] = x
        self.programs += conflicts
        return steps if conflicts else None

    def _steps(self, vectors: Array, G: Tensor) -> Array | None:
        """Return ``w − u`` for every ``u``, shape ``[rows, m]``; ``None`` if all are zero."""
        m = len(G)
        with one_thread() if m > MOST_AT_ONCE else nullcontext():
            gramian = _as_array(G)
            trace = float(gramian.trace())
            if _is_zero(trace, float(gramian.sum()), G):
                return None
            gramian = (gramian + gramian.T) / (2.0 * trace)
            gramian.reshape(-1)[:: m + 1] += self._regularization(G)
            Q = vectors @ gramian
            conflicts = int((Q < 0.0).any(1).sum())
            if conflicts == 0:
                return None
            self.programs += conflicts
            X, failed = solve(gramian, vectors, Q, _TOLERANCE)
            if failed is not None:
                self.failures += int(failed.sum())
                X[failed] = self._solve_by_quadprog(gramian, Q[failed])
            return X

    def _solve_by_quadprog(self, G: Array, Q: Array) -> Array:
        if isinstance(Q, Tensor):
            return torch.as_tensor(self._solve_by_quadprog(G.cpu().numpy(), Q.cpu().numpy())).to(Q)
        directions, bounds = np.eye(len(G)), np.zeros(len(G))
        try:
            # Rounding can make its solutions slightly negative.
            return np.stack([quadprog.solve_qp(G, -q, directions, bounds)[0] for q in Q]).clip(0.0)
        except ValueError as error:
            raise ValueError(
                f"The projection onto the dual cone failed ({error}); raise the projector's reg_eps above "
                f"{self.reg_eps}, since the Gramian is not positive semi-definite to that precision."
            ) from error


def _is_zero(trace: float, total: float, G: Tensor) -> bool:
    """Return whether all entries of the Gramian are zero; refuse one that is not finite or has a negative trace."""
    if not math.isfinite(trace + total):
        raise not_finite()
    if trace > 0.0:
        return False
    if bool(G.any()):
        raise ValueError(f"The Gramian is not positive semi-definite: its trace is {trace}.")
    return True


def _as_array(tensor: Tensor) -> Array:
    """Return a float64 tensor on CUDA devices for many tasks, otherwise a NumPy array."""
    if _stays_on_device(tensor):
        return tensor.detach().double()
    return tensor.numpy(force=True).astype(np.float64)


def _stays_on_device(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.shape[-1] > MOST_AT_ONCE


def _as_tensor(array: Array, G: Tensor) -> Tensor:
    return (array if isinstance(array, Tensor) else torch.from_numpy(array)).to(G)


def _add(values: list[float], free: Iterable[int], G: Matrix, start: list[float]) -> list[float]:
    """Return ``start + G x``, where ``x`` has the given values at the free entries and zeros elsewhere."""
    for value, i in zip(values, free, strict=True):
        if value:
            start = [a + value * b for a, b in zip(start, G[i], strict=True)]
    return start


def solve_row(G: Matrix, q: list[float], tolerance: float) -> list[float] | None:
    """Return the ``x ≥ 0`` with ``y = q + G x ≥ 0`` and ``x · y = 0``, shape ``[m]``.

    The tolerance is the largest ``|min(x, y)|`` of a solution, relative to ``max |q| + max |x|``. If ``G`` is not
    positive definite, the result can be ``None``.
    """
    size = max(max(q), -min(q))
    free = [i for i, value in enumerate(q) if value < 0.0]
    # Wrong signs are exchanged all at once, later one at a time, which always terminates.
    for exchange in range(2 ** len(q)):
        try:
            values = _solve_on(free, G, q)
        except ZeroDivisionError:
            return None
        signed = _add(values, free, G, q)
        slack = tolerance * (size + max(values, default=0.0))
        exact = True
        for value, i in zip(values, free, strict=True):
            exact &= -slack <= signed[i] <= slack
            signed[i] = value
        if min(signed) >= -slack:
            if not exact:
                return None
            x = [0.0] * len(q)
            for value, i in zip(values, free, strict=True):
                x[i] = max(value, 0.0)
            return x
        wrong = [i for i, value in enumerate(signed) if value < -slack]
        if not wrong:
            return None
        if exchange >= len(q):
            wrong = wrong[-1:]
        free = sorted(set(free) ^ set(wrong))
    return None


def _solve_on(free: list[int], G: Matrix, q: list[float]) -> list[float]:
    """Solve ``G x = −q`` on the free entries, with zeros elsewhere; return the values of the free entries."""
    if len(free) == 1:
        (i,) = free
        return [-q[i] / G[i][i]]
    if len(free) == 2:
        i, j = free
        a, b, c = G[i][i], G[i][j], G[j][j]
        determinant = a * c - b * b
        return [(b * q[j] - c * q[i]) / determinant, (b * q[i] - a * q[j]) / determinant]
    rows = [[G[i][j] for j in free] + [-q[i]] for i in free]
    for k, pivot in enumerate(rows, start=1):
        for n, row in enumerate(rows[k:], start=k):
            factor = row[k - 1] / pivot[k - 1]
            rows[n] = [a - factor * b for a, b in zip(row, pivot, strict=True)]
    values: list[float] = []  # of the last entries, in order
    for k, row in enumerate(reversed(rows), start=1):
        rest = sum(map(mul, row[-k:-1], values))
        values.insert(0, (row[-1] - rest) / row[-k - 1])
    return values
