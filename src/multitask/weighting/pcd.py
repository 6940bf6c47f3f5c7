from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import quadprog
import torch
from torch import Tensor

from multitask.weighting.base import Layout
from multitask.weighting.gramian import Array, CosineMethod, factored, per_unit
from multitask.weighting.solver_stats import SolverStats


class PCD(CosineMethod):
    """The direction closest to the primary task's gradient that gives every other task a minimum improvement.

    Gradients are divided by the root of a moving average of their squared norm. The minimum improvement of a task is
    the share τ of what a step along its own normalized gradient would achieve. The result has the norm of the primary
    gradient; it is zero if the primary task has no gradient or no labels. If the minima are infeasible they are
    dropped, which counts as a failure.

    "Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical Multi-Objective
    Optimization" (2026).

    Args:
        primary: Name of the primary task; the first by default.
        tau: τ, in [0, 1].
        beta: β, the decay of the averages, in [0, 1).
        eps: ε, added to the averages, at least zero.
    """

    per_task: ClassVar[dict[str, Layout]] = {"squares": "vector", "steps": "vector", "index": "vector"}
    squares: Tensor
    steps: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        primary: str | None = None,
        tau: float = 0.02,
        beta: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        primary = tasks[0] if primary is None else primary
        if primary not in tasks:
            raise ValueError(f"weighting.primary={primary} is not a task; choose one of {', '.join(tasks)}.")
        if not 0 <= tau <= 1 or not 0 <= beta < 1 or eps < 0:
            raise ValueError(
                f"weighting.tau={tau}, beta={beta}, eps={eps}: 0 ≤ τ ≤ 1, 0 ≤ β < 1, ε ≥ 0 must hold."
            )
        self.primary = list(tasks).index(primary)
        self.tau = tau
        self.beta = beta
        self.eps = eps
        self.solver = SolverStats("pcd")
        self.index = torch.arange(len(tasks))
        self.keep("squares", torch.zeros(len(tasks), dtype=torch.float64))
        self.keep("steps", torch.zeros(len(tasks), dtype=torch.float64))

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        sizes = norms * self._scales(norms)
        index = self.index.tolist()
        weights = np.zeros_like(norms)
        first = index.index(self.primary) if self.primary in index else -1
        if first >= 0 and norms[first] > 0:
            others = np.flatnonzero((norms > 0) & (np.arange(len(norms)) != first))
            with self.solver.timed():
                units = self._direction(C, first, others, self.tau * sizes[others] / sizes[first], ridge)
            length = float(units @ C @ units)
            if length > ridge * np.abs(units).sum() ** 2:
                weights = per_unit(units * (norms[first] / np.sqrt(length)), norms)
        return weights

    def _direction(self, C: Array, first: int, others: Array, gains: Array, ridge: float) -> Array:
        """Return the weights of the unit gradients in the direction closest to ``first`` with at least ``gains``."""
        weights = np.zeros(len(C))
        weights[first] = 1.0
        # In orthonormal coordinates of the gradients' span the program is best conditioned.
        values, V = factored(C, ridge)
        units = V * np.sqrt(values)
        if len(others) and (units[others] @ units[first] < gains).any():
            try:
                solution = quadprog.solve_qp(np.eye(len(values)), units[first], units[others].T, gains)
            except ValueError:
                self.solver.failed("the minima are infeasible, and are dropped in this step")
            else:
                weights[others] = solution[4]  # the multipliers
        return weights

    def _scales(self, norms: Array) -> Array:
        self.steps = self.steps + 1
        squares = torch.as_tensor(norms**2).to(self.squares)
        self.squares = self.beta * self.squares + (1 - self.beta) * squares
        average = (self.squares / (1 - self.beta**self.steps)).cpu().numpy()
        roots = np.sqrt(average + self.eps)
        return per_unit(1.0, roots)
