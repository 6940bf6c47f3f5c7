"""Priority-constrained descent."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchjd.aggregation._pcd import _solve_qp

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import WeightedMethod
from multitask.weighting.gramian import checked
from multitask.weighting.present import Kind
from multitask.weighting.tally import Tally


class PCD(WeightedMethod):
    """The direction next to the primary task's gradient along which every other task gains its minimum.

    Gradients are divided by the root of a moving average of their squared norm; each other task is
    granted the share τ of what a step along its own divided gradient would give it. The result is as
    long as the primary gradient. Where the primary task's gradient is zero, or its labels are absent,
    the trunk rests; where the minima exclude one another they are dropped, which counts as a failure.

    "Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical Multi-Objective
    Optimization" (2026), with torchjd's exact solver.

    Args:
        tasks: The tasks' names.
        primary: Name of the primary task; the first by default.
        tau: The share τ, between 0 and 1.
        beta: How slowly the averages follow, from 0 to less than 1.
        eps: Added to the averages.

    Raises:
        ValueError: If there is no task of that name, or a number is out of its range.
    """

    per_task: ClassVar[dict[str, Kind]] = {"squares": "vector", "steps": "vector", "index": "vector"}
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
            raise ValueError(f"weighting.primary={primary} is no task; choose one of {', '.join(tasks)}.")
        if not 0 <= tau <= 1 or not 0 <= beta < 1 or eps < 0:
            raise ValueError(
                f"weighting.tau={tau}, beta={beta}, eps={eps}: 0 ≤ τ ≤ 1, 0 ≤ β < 1, ε ≥ 0 must hold."
            )
        self.primary = list(tasks).index(primary)
        self.tau = tau
        self.beta = beta
        self.eps = eps
        self.solver = Tally("pcd")
        self.index = torch.arange(len(tasks))
        self.register_buffer("squares", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(len(tasks), dtype=torch.float64))

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weights of the direction."""
        gramian = checked(gradients)
        G = gramian.double().cpu()
        squares = G.diagonal()
        scale = self._scales(squares)
        weights = torch.zeros_like(squares)
        first = (self.index.cpu() == self.primary).nonzero().flatten()
        if len(first) and squares[first] > 0:
            order = torch.cat([first, (self.index.cpu() != self.primary).nonzero().flatten()])
            divided = (G * torch.outer(scale, scale))[order][:, order]
            precision = 10 * torch.finfo(gramian.dtype).eps
            taus = torch.full((len(order) - 1,), self.tau, dtype=torch.float64)
            with self.solver.timed():
                w = _solve_qp(divided, taus, dependence_tol=max(1e-9, precision))
            short = taus * divided.diagonal()[1:] - divided[1:] @ w
            if (short > max(1e-8, precision) * (divided[1:].abs() @ w + 1)).any():
                self.solver.failed("the minima exclude one another, and are dropped in this step")
            length = w @ divided @ w
            if length > precision * (w.abs() @ divided.diagonal().sqrt()) ** 2:
                weights[order] = w * scale[order] * (squares[first] / length).sqrt()
        return weights.to(gramian)

    def reset(self) -> None:
        """Forget the averages."""
        self.squares.zero_()
        self.steps.zero_()

    def _scales(self, squares: Tensor) -> Tensor:
        self.steps = self.steps + 1
        self.squares = self.beta * self.squares + (1 - self.beta) * squares.to(self.squares)
        average = (self.squares / (1 - self.beta**self.steps)).to(squares)
        roots = (average + self.eps).sqrt()
        return torch.where(roots > 0, 1 / roots, 0.0)
