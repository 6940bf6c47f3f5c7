"""The Helmholtz equation."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.physics.problem import Problem, slopes


class Helmholtz(Problem):
    """u_xx + u_yy + k² u = q on [−1, 1]², zero at the boundary, with q such that u = sin(a πx) sin(b πy).

    As in "Understanding and Mitigating Gradient Flow Pathologies in Physics-Informed Neural Networks" (Wang, Teng &
    Perdikaris, 2021).

    Args:
        k: The wave number.
        modes: The integers a and b, at least 1; others raise ``ValueError``, since u is not zero at the boundary.
    """

    axes: ClassVar[Mapping[str, tuple[float, float]]] = {"x": (-1.0, 1.0), "y": (-1.0, 1.0)}
    fields = ("u",)
    equations = ("residual",)
    faces: ClassVar[Mapping[str, list[tuple[str, float]]]] = {
        "boundary": [("x", -1.0), ("x", 1.0), ("y", -1.0), ("y", 1.0)]
    }

    def __init__(self, k: float = 1.0, modes: Sequence[int] = (1, 4)) -> None:
        if len(modes) != 2 or any(mode != int(mode) or mode < 1 for mode in modes):
            raise ValueError(f"data.problem.modes={list(modes)} must be two whole numbers above 0.")
        self.k = k
        self.modes = modes

    def residuals(self, values: Tensor, points: Tensor) -> dict[str, Tensor]:
        """Return u_xx + u_yy + k² u − q."""
        u = values[:, 0]
        u_x, u_y = slopes(u, points)
        laplacian = slopes(u_x, points)[0] + slopes(u_y, points)[1]
        a, b = self.modes
        source = (self.k**2 - (a**2 + b**2) * math.pi**2) * self.solution(points.detach())[:, 0]
        return {"residual": laplacian + self.k**2 * u - source}

    def condition(self, name: str, points: Tensor) -> Tensor:
        """Return zero."""
        return torch.zeros_like(points[:, :1])

    def solution(self, points: Tensor) -> Tensor:
        """Return u."""
        a, b = self.modes
        return torch.sin(a * math.pi * points[:, :1]) * torch.sin(b * math.pi * points[:, 1:])
