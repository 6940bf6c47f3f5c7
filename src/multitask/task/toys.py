"""Objectives of two variables as losses, to visualize the path of a weighting."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from multitask.losses.pixels import Reduced

# Lower bound of the logarithm's argument in CAGrad's toy problem.
_LEAST = 5e-6


class Objective(Reduced):
    """A function of a point, used as the loss of a task whose prediction is the point.

    ``reduction``: ``mean`` over the points of a batch, or ``none`` for one value per point.
    """

    @abstractmethod
    def values(self, points: Tensor) -> Tensor:
        """Return the value at each point: ``[n, d]`` → ``[n]``."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the value at the prediction relative to the target (the origin)."""
        values = self.values(prediction - target)
        return values.mean() if self.reduction == "mean" else values


class Quadratic(Objective):
    """scale · ½ Σ curvature · (x − centre)².

    The Pareto set of two with the same curvatures is the line segment between their centres.

    Args:
        centre: The minimizer.
        curvature: Second derivative along each axis; positive.
        scale: Factor of the objective.
    """

    centre: Tensor
    curvature: Tensor

    def __init__(
        self,
        centre: Sequence[float],
        curvature: Sequence[float] = (1.0, 1.0),
        scale: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        if len(centre) != len(curvature) or min(curvature) <= 0:
            raise ValueError(
                f"tasks.*.loss.curvature={list(curvature)} must be {len(centre)} numbers above 0, one for "
                "each of tasks.*.loss.centre."
            )
        self.scale = scale
        self.register_buffer("centre", torch.tensor([float(x) for x in centre]), persistent=False)
        self.register_buffer("curvature", torch.tensor([float(x) for x in curvature]), persistent=False)

    def values(self, points: Tensor) -> Tensor:
        """Return the value at each point."""
        return self.scale * 0.5 * (self.curvature * (points - self.centre) ** 2).sum(-1)


class Valleys(Objective):
    """One of the two objectives of the toy problem in the appendix of "Conflict-Averse Gradient Descent" (2021).

    It has a steep curved valley for x₂ > 0 and a wide bowl for x₂ < 0. From some starting points, descent on the
    mean loss stalls in the valleys, where the gradients conflict and differ greatly in norm. The Pareto set is close
    to the segment with x₁ from −7 to 7 at x₂ = −8.36. With ``scale=0.1`` for the first objective it is the toy
    problem of "Multi-Task Learning as a Bargaining Game" (2022).

    ``number`` is 1 or 2, and ``scale`` a factor of the objective.
    """

    def __init__(self, number: int, scale: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if number not in (1, 2):
            raise ValueError(f"tasks.*.loss.number={number} is 1 or 2.")
        self.number = number
        self.scale = scale

    def values(self, points: Tensor) -> Tensor:
        """Return the value at each point ``[n, 2]``."""
        x, y = points.unbind(-1)
        if self.number == 1:
            valley, middle = 0.5 * (-x - 7) - torch.tanh(-y), 7.0
        else:
            valley, middle = 0.5 * (-x + 3) + torch.tanh(-y) + 2, -7.0
        upper = valley.abs().clamp(min=_LEAST).log() + 6
        lower = ((middle - x) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
        return self.scale * (
            torch.tanh(0.5 * y).clamp(min=0) * upper + torch.tanh(-0.5 * y).clamp(min=0) * lower
        )


def non_dominated(values: Tensor) -> Tensor:
    """Return a mask of the points that no other point dominates, ``[n, 2]`` → ``[n]``; equal points are all kept."""
    order = torch.argsort(values[:, 1], stable=True)
    order = order[torch.argsort(values[order, 0], stable=True)]
    first, second = values[order].T.contiguous()
    # Dominated by a point that is strictly better in the first objective and not worse in the second ...
    best_before = torch.cat([second.new_full((1,), torch.inf), second.cummin(0).values[:-1]])
    starts = torch.searchsorted(first, first)
    dominated = best_before[starts] <= second
    # ... or by one that is as good in the first and strictly better in the second.
    dominated |= second > second[starts]
    kept = torch.empty_like(dominated)
    kept[order] = ~dominated
    return kept
