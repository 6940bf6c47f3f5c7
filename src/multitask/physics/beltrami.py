"""Beltrami flow."""

from collections.abc import Mapping
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from multitask.physics.problem import Problem, positive, slopes


class Beltrami(Problem):
    """Unsteady three-dimensional Navier–Stokes in the cube [−1, 1]³ for t in [0, 1].

    With velocities (u, v, w) and pressure p, u_t + (u ∂x + v ∂y + w ∂z) u + p_x = (u_xx + u_yy + u_zz) / Re, the same
    for v with p_y and for w with p_z, and u_x + v_y + w_z = 0; velocities and pressure are given on all sides and at
    the start. "Exact Fully 3D Navier–Stokes Solutions for Benchmarking" (Ethier & Steinman, 1994), a = d = 1.

    Args:
        reynolds: The Reynolds number Re, positive.
    """

    axes: ClassVar[Mapping[str, tuple[float, float]]] = {
        "x": (-1.0, 1.0),
        "y": (-1.0, 1.0),
        "z": (-1.0, 1.0),
        "t": (0.0, 1.0),
    }
    fields = ("u", "v", "w", "p")
    equations = ("momentum", "continuity")
    faces: ClassVar[Mapping[str, list[tuple[str, float]]]] = {
        "boundary": list(product("xyz", (-1.0, 1.0))),
        "initial": [("t", 0.0)],
    }

    def __init__(self, reynolds: float = 1.0) -> None:
        self.reynolds = positive("reynolds", reynolds)

    def residuals(self, values: Tensor, points: Tensor) -> dict[str, Tensor]:
        """Return the residuals of the three momentum equations together, ``[n, 3]``, and that of continuity."""
        *velocity, p = values.unbind(1)
        first, pressure = [slopes(w, points) for w in velocity], slopes(p, points)
        momentum = []
        for of_w, p_w in zip(first, pressure, strict=False):
            carried = torch.stack([v * w_x for v, w_x in zip(velocity, of_w, strict=False)]).sum(0)
            friction = torch.stack([slopes(of_w[i], points)[i] for i in range(3)]).sum(0)
            momentum.append(of_w[3] + carried + p_w - friction / self.reynolds)
        divergence = first[0][0] + first[1][1] + first[2][2]
        return {"momentum": torch.stack(momentum, 1), "continuity": divergence}

    def solution(self, points: Tensor) -> Tensor:
        """Return velocities and pressure."""
        place, t = points[:, :3], points[:, 3:]
        following, last = place.roll(-1, 1), place.roll(-2, 1)  # y, z, x and z, x, y
        decay, grown = torch.exp(-t / self.reynolds), torch.exp(place)
        sines, cosines = torch.sin(following + last), torch.cos(place + following)
        # Of x: e^x sin(y + z) + e^z cos(x + y), and so on round.
        velocity = -(grown * sines + grown.roll(-2, 1) * cosines) * decay
        # Of x: 2 sin(x + y) cos(z + x) e^(y + z).
        crossed = 2 * torch.sin(place + following) * torch.cos(last + place) * torch.exp(following + last)
        pressure = -(grown.square() + crossed).sum(1, keepdim=True) / 2 * decay.square()
        return torch.cat([velocity, pressure], 1)
