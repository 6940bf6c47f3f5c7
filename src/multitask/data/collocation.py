"""Collocation points, at which a network has to satisfy equations and conditions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.stats.qmc import LatinHypercube
from torch import Tensor

from multitask.data.base import InMemory, Split
from multitask.physics.problem import INSIDE, Problem
from multitask.randomness import derived_seed


class Draws(dict[str, Tensor]):
    """One draw of points per step of an epoch, by place, ``[steps, n, d]``; redrawn every epoch.

    ``points`` is the number of points per draw, by place.
    """

    def __init__(self, problem: Problem, steps: int, points: Mapping[str, int], seed: int) -> None:
        super().__init__()
        self.problem = problem
        self.steps = steps
        self.points = points
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the points of an epoch; they depend on seed and epoch alone."""
        generator = np.random.default_rng(derived_seed("points", self.seed, epoch))
        self.update(_drawn(self.problem, self.steps, self.points, generator))


@dataclass(eq=False)
class Collocation(InMemory):
    """Collocation points of a problem, drawn by Latin hypercube sampling.

    A training example is one draw: ``inside`` ``[n, d]``, and the points of each condition under its name. A
    validation or test example is one line of a regular grid, with the keys ``grid`` and ``solution``, and a share of
    a separate draw.

    Args:
        problem: The problem.
        points: Number of points per draw, ``inside`` and for each condition by name.
        steps: Number of draws per epoch.
        fixed: Whether all draws are the same.
        grids: Number of grid points along each axis, for validation and for test.
        points_seed: Seed of the validation and test draws: fixed, so that all runs are measured at the same points.
        batch_size: Draws per process and step.
        eval_batch_size: Grid lines per process and evaluation batch.
        seed: Seed of the training draws.

    Raises:
        ValueError: If ``points`` does not name the problem's places, or a number is too small.
    """

    problem: Problem
    points: Mapping[str, int]
    steps: int = 500
    fixed: bool = False
    grids: Sequence[Sequence[int]] = ((64, 32), (256, 100))
    points_seed: int = 0
    _: KW_ONLY
    batch_size: int | None = 1
    eval_batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        places = [INSIDE, *self.problem.faces]
        if set(self.points) != set(places) or min(self.points.values()) < 1:
            raise ValueError(
                f"data.points={dict(self.points)} must have a positive count for each of {', '.join(places)}."
            )
        for place, faces in self.problem.faces.items():
            if self.points[place] < len(faces):
                raise ValueError(
                    f"data.points.{place}={self.points[place]} must be at least {len(faces)}, one per face."
                )
        if self.steps < 1:
            raise ValueError(f"data.steps={self.steps} must be 1 or more.")
        grids, axes = [list(g) for g in self.grids], len(self.problem.axes)
        if len(grids) != 2 or any(len(g) != axes or min(g) < 2 for g in grids):
            raise ValueError(f"data.grids={grids} must be two grids of {axes} counts above 1.")

    def load(self) -> dict[str, Split]:
        """Draw the points and create the grids."""
        train: dict[str, Tensor] = Draws(
            self.problem, 1 if self.fixed else self.steps, self.points, self.seed
        )
        if self.fixed:
            train = {place: draw.expand(self.steps, -1, -1) for place, draw in train.items()}
        splits: dict[str, Split] = {"train": train}
        for name, sizes in zip(("val", "test"), self.grids, strict=True):
            lines = sizes[0]
            shares = {place: -(-count // lines) for place, count in self.points.items()}
            generator = np.random.default_rng(derived_seed(name, self.points_seed))
            whole = _drawn(self.problem, 1, {p: lines * n for p, n in shares.items()}, generator)
            grid = grid_of(self.problem, sizes)
            splits[name] = {
                **{place: _dealt(p[0], lines, generator) for place, p in whole.items()},
                "grid": grid.view(lines, -1, len(sizes)),
                "solution": self.problem.solution(grid).view(lines, -1, len(self.problem.fields)),
            }
        return splits

    def placed(self, split: str) -> Split:
        """Return a split without moving it, since draws change every epoch."""
        return self.splits[split]


def _dealt(points: Tensor, lines: int, generator: np.random.Generator) -> Tensor:
    """Distribute points ``[n, d]`` over the lines of a grid at random, ``[lines, n / lines, d]``."""
    return points[torch.from_numpy(generator.permutation(len(points)))].view(lines, -1, points.shape[1])


def grid_of(problem: Problem, sizes: Sequence[int]) -> Tensor:
    """Return the points of a regular grid including its ends, ``[n, d]`` in float64, the first axis varying slowest.

    Axes without a size are fixed at their midpoint.
    """
    lines = [torch.linspace(*ends, 3, dtype=torch.float64)[1:2] for ends in problem.axes.values()]
    for i, (ends, size) in enumerate(zip(problem.axes.values(), sizes, strict=False)):
        lines[i] = torch.linspace(*ends, size, dtype=torch.float64)
    return torch.cartesian_prod(*lines)


def _drawn(
    problem: Problem, draws: int, points: Mapping[str, int], generator: np.random.Generator
) -> dict[str, Tensor]:
    """Return points by place, ``[draws, n, d]`` in float64: a Latin hypercube inside, and one on each face."""
    drawn = {INSIDE: _boxes(list(problem.axes.values()), draws, points[INSIDE], generator)}
    for place, faces in problem.faces.items():
        shares = _shares(problem, faces, points[place])
        pairs = zip(faces, shares, strict=True)
        drawn[place] = torch.cat([_boxes(_face(problem, *f), draws, n, generator) for f, n in pairs], 1)
    return drawn


def _boxes(
    ends: Sequence[tuple[float, float]], draws: int, count: int, generator: np.random.Generator
) -> Tensor:
    """Return Latin hypercube samples of a box, ``[draws, count, d]``; axes whose ends are equal are constant."""
    low, high = (torch.tensor(e, dtype=torch.float64) for e in zip(*ends, strict=True))
    free = low < high
    engine = LatinHypercube(int(free.sum()), rng=generator)
    unit = torch.zeros(draws, count, len(ends), dtype=torch.float64)
    unit[..., free] = torch.from_numpy(np.stack([engine.random(count) for _ in range(draws)]))
    return low + (high - low) * unit


def _face(problem: Problem, axis: str, at: float) -> list[tuple[float, float]]:
    """Return the lower and upper end of a face along each axis."""
    return [(at, at) if name == axis else ends for name, ends in problem.axes.items()]


def _shares(problem: Problem, faces: Sequence[tuple[str, float]], count: int) -> list[int]:
    """Return how many of ``count`` points each face gets: in proportion to its size, at least one."""
    sizes = [math.prod(b - a for a, b in _face(problem, *face) if a < b) for face in faces]
    before = np.cumsum([0.0, *sizes]) / sum(sizes)
    # Rounding the cumulative counts of points beyond one per face keeps their sum exact.
    spare = np.round((count - len(faces)) * before).astype(int)
    return [1 + int(b - a) for a, b in pairwise(spare)]
