"""Burgers' equation."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from scipy.special import roots_hermite
from torch import Tensor

from multitask.physics.problem import Problem, positive, slopes

# With 100 nodes or more, no digit of float64 changes at ν = 0.01/π.
_NODES = 200
_AT_ONCE = 4096


class Burgers(Problem):
    """u_t + u u_x = ν u_xx for x in [−1, 1] and t in [0, 1], with u(x, 0) = −sin πx and u(±1, t) = 0.

    The solution is the quotient of two integrals over the heat kernel, by the Cole–Hopf transformation:
    "Spectral and Finite Difference Solutions of the Burgers Equation" (Basdevant et al., 1986).

    Args:
        nu: The viscosity ν, positive.
    """

    axes: ClassVar[Mapping[str, tuple[float, float]]] = {"x": (-1.0, 1.0), "t": (0.0, 1.0)}
    fields = ("u",)
    equations = ("residual",)
    faces: ClassVar[Mapping[str, list[tuple[str, float]]]] = {
        "boundary": [("x", -1.0), ("x", 1.0)],
        "initial": [("t", 0.0)],
    }

    def __init__(self, nu: float = 0.01 / math.pi) -> None:
        self.nu = positive("nu", nu)

    def residuals(self, values: Tensor, points: Tensor) -> dict[str, Tensor]:
        """Return u_t + u u_x − ν u_xx."""
        u = values[:, 0]
        u_x, u_t = slopes(u, points)
        u_xx, _ = slopes(u_x, points)
        return {"residual": u_t + u * u_x - self.nu * u_xx}

    def condition(self, name: str, points: Tensor) -> Tensor:
        """Return −sin πx at the start, and zero at the ends."""
        return _start(points[:, :1]) if name == "initial" else torch.zeros_like(points[:, :1])

    def solution(self, points: Tensor) -> Tensor:
        """Return u by Gauss–Hermite quadrature of both integrals."""
        nodes, weights = (torch.from_numpy(a).to(points) for a in roots_hermite(_NODES))
        return torch.cat([self._quotient(part, nodes, weights) for part in points.split(_AT_ONCE)])

    def _quotient(self, points: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
        x, t = points[:, :1], points[:, 1:]
        y = x - (4 * self.nu * t).sqrt() * nodes
        exponents = -torch.cos(math.pi * y) / (2 * math.pi * self.nu)
        heat = weights * torch.exp(exponents - exponents.amax(1, keepdim=True))
        return (heat * _start(y)).sum(1, keepdim=True) / heat.sum(1, keepdim=True)


def _start(x: Tensor) -> Tensor:
    return -torch.sin(math.pi * x)
