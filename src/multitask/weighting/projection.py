"""Exact projection onto the dual cone of the task gradients, for UPGrad and DualProj."""

import math
import time
from operator import add

import numpy as np
import quadprog
import torch
from torch import Tensor
from torchjd.linalg import DualConeProjector, PSDMatrix

from multitask.weighting.block_pivoting import Array, namespace, solve_by_pivoting
from multitask.weighting.few_tasks import MOST_TASKS, multiply, normalize, solve_row

# Largest violation of the optimality conditions that passes as exact, relative to max |G u| + max |w − u|.
_TOLERANCE = 1e-12


class ExactProjector(DualConeProjector):
    r"""Weights of the projection onto the dual cone of the task gradients, exact and independent of scale.

    For every row :math:`u` of ``U`` this finds the :math:`w \ge u` with the least :math:`w^\top G w`, as
    torchjd's ``QuadprogProjector`` does, with these differences:

    - the Gramian is divided by its trace however small that is, so that multiplying all losses by a number
      changes no weight; of a Gramian that is exactly zero the weights are :math:`u` themselves;
    - a row without conflict (:math:`G u \ge 0`) needs no program: there :math:`w = u`;
    - up to six tasks are solved row by row in Python numbers (one and two conflicting tasks in closed
      form), more for all rows together by block pivoting, on the device of the Gramian if that is a CUDA
      device and on the CPU otherwise; always in float64;
    - every solution is checked against the optimality conditions. Rows that violate them are counted in
      ``failures`` and solved once more by quadprog.

    What has been done so far can be read at any time, without waiting for a device: ``solves`` (calls),
    ``programs`` (rows with a conflict), ``failures``, ``seconds`` (wall clock).

    :param reg_eps: What is added to the diagonal of the Gramian after division by its trace, so that it is
        positive definite. Never less than ``m`` roundings of the Gramian's dtype are added.

    "Jacobian Descent For Multi-Objective Optimization" (Quinton and Rey, 2024), Proposition 1.
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
        """Return the weights of the projections, of the shape of ``U`` (``[..., m]``), dtype of ``G``.

        :raises ValueError: If the Gramian ``G`` (``[m, m]``) has an entry that is NaN or infinite, or is so
            far from positive semi-definite that quadprog fails as well.
        """
        start = time.perf_counter()
        regularization = max(self.reg_eps, len(G) * torch.finfo(G.dtype).eps)
        project = self._project_few if len(G) <= MOST_TASKS else self._project_many
        W = project(U, G, regularization)
        self.solves += 1
        self.seconds += time.perf_counter() - start
        return W

    def _project_few(self, U: Tensor, G: Tensor, regularization: float) -> Tensor:
        rows = G.tolist()
        trace = sum([row[i] for i, row in enumerate(rows)])
        if _is_zero(trace, sum(map(sum, rows)), G):
            return _copy(U, G)
        gramian = normalize(rows, trace, regularization)
        W = U.tolist() if U.ndim == 2 else U.reshape(-1, len(G)).tolist()
        conflicts = 0
        for i, u in enumerate(W):
            q = multiply(u, gramian)
            if min(q) < 0.0:
                conflicts += 1
                x = solve_row(gramian, q, _TOLERANCE)
                if x is None:
                    self.failures += 1
                    (x,) = self._solve_by_quadprog(np.array(gramian), np.array([q]))
                W[i] = list(map(add, u, x))
        if conflicts == 0:
            return _copy(U, G)
        self.programs += conflicts
        return torch.tensor(W, dtype=G.dtype, device=G.device).view(U.shape)

    def _project_many(self, U: Tensor, G: Tensor, regularization: float) -> Tensor:
        gramian = _as_array(G)
        trace = float(gramian.trace())
        if _is_zero(trace, float(gramian.sum()), G):
            return _copy(U, G)
        gramian = (gramian + gramian.T) / (2.0 * trace)
        gramian.reshape(-1)[:: len(G) + 1] += regularization
        vectors = _as_array(U).reshape(-1, len(G))
        Q = vectors @ gramian
        conflicts = len(namespace(Q).where((Q < 0.0).any(1))[0])
        if conflicts == 0:
            return _copy(U, G)
        self.programs += conflicts
        X = solve_by_pivoting(gramian, Q, _TOLERANCE)
        if not math.isfinite(float(X.sum())):
            failed = ~namespace(X).isfinite(X).all(1)
            self.failures += int(failed.sum())
            X[failed] = self._solve_by_quadprog(gramian, Q[failed])
        W = vectors + X
        weights = W if isinstance(W, Tensor) else torch.from_numpy(W)
        return _like(weights, G).view(U.shape)

    def _solve_by_quadprog(self, G: Array, Q: Array) -> Array:
        if isinstance(Q, Tensor):
            return torch.as_tensor(self._solve_by_quadprog(G.cpu().numpy(), Q.cpu().numpy())).to(Q)
        directions, bounds = np.eye(len(G)), np.zeros(len(G))
        try:
            return np.stack([quadprog.solve_qp(G, -q, directions, bounds)[0] for q in Q])
        except ValueError as error:
            raise ValueError(
                f"The projection onto the dual cone failed ({error}); raise the projector's reg_eps above "
                f"{self.reg_eps}, since the Gramian is not positive semi-definite to that precision."
            ) from error


def _is_zero(trace: float, total: float, G: Tensor) -> bool:
    """Return whether all entries of the Gramian are zero.

    :raises ValueError: If an entry is not finite, or the trace not positive though the Gramian is not zero.
    """
    if not math.isfinite(trace + total):
        raise ValueError("The Gramian of the task gradients has an entry that is NaN or infinite.")
    if trace > 0.0:
        return False
    if bool(G.any()):
        raise ValueError(f"The Gramian is not positive semi-definite: its trace is {trace}.")
    return True


def _copy(U: Tensor, G: Tensor) -> Tensor:
    """Return the vectors as weights: a copy, since the answer must not be the caller's tensor."""
    copy = _like(U.detach(), G)
    return copy.clone() if copy.data_ptr() == U.data_ptr() else copy


def _like(weights: Tensor, G: Tensor) -> Tensor:
    # Most often nothing is to do, and asking takes less time than Tensor.to.
    return weights if weights.dtype == G.dtype and weights.device == G.device else weights.to(G)


def _as_array(tensor: Tensor) -> Array:
    """Float64 where the work is done: on CUDA devices, and with NumPy on the CPU for all others."""
    tensor = tensor.detach()
    if tensor.is_cuda:
        return tensor.double()
    return np.asarray(tensor.cpu().numpy(), dtype=np.float64)
