"""A differential equation, as a network has to satisfy it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

INSIDE = "inside"
"""The part of the domain where the equations hold: the name of the points inside the domain."""


class Problem(ABC):
    """Equations on a box, conditions on its faces, and the solution that satisfies them.

    A term is the sum of squared residuals at points of one place: of equations ``inside``, or of a condition on the
    faces of its own name. Points are ``[n, d]``, in the order of the axes; values are ``[n, f]``, in the order of the
    fields.
    """

    axes: ClassVar[Mapping[str, tuple[float, float]]]
    """Lower and upper end of each axis."""
    fields: ClassVar[Sequence[str]]
    """The names of the functions that the network predicts."""
    equations: ClassVar[Sequence[str]]
    """The terms of :meth:`residuals`."""
    faces: ClassVar[Mapping[str, Sequence[tuple[str, float]]]]
    """The faces on which each condition holds: an axis, and the coordinate on it, for each face."""

    @abstractmethod
    def residuals(self, values: Tensor, points: Tensor) -> Mapping[str, Tensor]:
        """Return the residuals of the equations at each point, ``[n]`` or several ``[n, c]``, by the name of the term.

        ``values`` are the network's predictions at ``points``, which require gradients.
        """

    @abstractmethod
    def solution(self, points: Tensor) -> Tensor:
        """Return the solution, ``[n, f]``, at points in float64."""

    def condition(self, name: str, points: Tensor) -> Tensor:
        """Return the values of a condition at points of its faces, by default the solution."""
        return self.solution(points)

    def places(self) -> dict[str, str]:
        """Return where the points of each term lie, by the term's name."""
        return dict.fromkeys(self.equations, INSIDE) | {name: name for name in self.faces}


def positive(name: str, value: float) -> float:
    """Return a parameter of a problem; raise ``ValueError`` if it is not positive."""
    if value <= 0:
        raise ValueError(f"data.problem.{name}={value} must be positive.")
    return value


def slopes(values: Tensor, points: Tensor) -> Sequence[Tensor]:
    """Return the derivative of ``values``, ``[n]``, with respect to each coordinate of its point, with the graph."""
    (found,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    return found.unbind(1)
