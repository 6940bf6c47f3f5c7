"""Collocation and boundary points of a one-dimensional Poisson equation."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch

from multitask.data.base import InMemory, Split
from multitask.data.loading import check_counts


@dataclass(eq=False)
class Poisson(InMemory):
    """Points of u″ = −π² sin(πx), u(±1) = 0, whose solution is sin(πx).

    ``inputs`` ``[1]``: uniform in (−1, 1) for training, and the two ends alternately; ``u`` ``[1]``: 0 at the ends,
    NaN between them. Validation and test have the solution on grids.

    Args:
        examples: Number of training points between the ends, and of grid points for validation and test.
        ends: Number of training points at the ends.
        points_seed: Seed of the points: fixed, so that runs of all seeds share them.
    """

    examples: Sequence[int] = (900, 100, 101)
    ends: int = 100
    points_seed: int = 0
    _: KW_ONLY
    batch_size: int | None = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self.examples, least=2)
        if self.ends < 2:
            raise ValueError(f"data.ends={self.ends} must be 2 or more.")

    def load(self) -> dict[str, Split]:
        """Draw the training points and create the grids."""
        generator = torch.Generator().manual_seed(self.points_seed)
        inner = 2 * torch.rand(self.examples[0], 1, generator=generator) - 1
        ends = torch.tensor([[-1.0], [1.0]]).repeat(self.ends // 2 + 1, 1)[: self.ends]
        known = torch.cat([torch.full_like(inner, torch.nan), torch.zeros_like(ends)])
        splits: dict[str, Split] = {"train": {"inputs": torch.cat([inner, ends]), "u": known}}
        for name, count in zip(("val", "test"), self.examples[1:], strict=True):
            grid = torch.linspace(-1, 1, count)[:, None]
            splits[name] = {"inputs": grid, "u": torch.sin(math.pi * grid)}
        return splits
