"""Kovasznay flow."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from multitask.physics.problem import Problem, positive, slopes


class Kovasznay(Problem):
    """Steady two-dimensional Navier–Stokes behind a grid, for x in [−0.5, 1] and y in [−0.5, 1.5].

    u u_x + v u_y + p_x = (u_xx + u_yy) / Re, the same for v with p_y, and u_x + v_y = 0; velocities and pressure are
    given on all four sides. "Laminar Flow Behind a Two-Dimensional Grid" (Kovasznay, 1948).

    Args:
        reynolds: The Reynolds number Re, positive.
    """

    axes: ClassVar[Mapping[str, tuple[float, float]]] = {"x": (-0.5, 1.0), "y": (-0.5, 1.5)}
    fields = ("u", "v", "p")
    equations = ("momentum", "continuity")
    faces: ClassVar[Mapping[str, list[tuple[str, float]]]] = {
        "boundary": [("x", -0.5), ("x", 1.0), ("y", -0.5), ("y", 1.5)]
    }

    def __init__(self, reynolds: float = 40.0) -> None:
        self.reynolds = positive("reynolds", reynolds)
        self.decay = reynolds / 2 - math.sqrt(reynolds**2 / 4 + 4 * math.pi**2)

    def residuals(self, values: Tensor, points: Tensor) -> dict[str, Tensor]:
        """Return the residuals of both momentum equations together, ``[n, 2]``, and that of continuity."""
        u, v, p = values.unbind(1)
        (u_x, u_y), (v_x, v_y), pressure = slopes(u, points), slopes(v, points), slopes(p, points)
        momentum = []
        for w_x, w_y, p_w in ((u_x, u_y, pressure[0]), (v_x, v_y, pressure[1])):
            friction = slopes(w_x, points)[0] + slopes(w_y, points)[1]
            momentum.append(u * w_x + v * w_y + p_w - friction / self.reynolds)
        return {"momentum": torch.stack(momentum, 1), "continuity": u_x + v_y}

    def solution(self, points: Tensor) -> Tensor:
        """Return velocities and pressure."""
        x, y = points.unbind(1)
        wave, decay = torch.exp(self.decay * x), self.decay
        u = 1 - wave * torch.cos(2 * math.pi * y)
        v = decay / (2 * math.pi) * wave * torch.sin(2 * math.pi * y)
        return torch.stack([u, v, (1 - wave.square()) / 2], 1)
