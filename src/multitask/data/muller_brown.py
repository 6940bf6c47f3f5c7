"""Energy and forces of a potential at points of the plane."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from multitask.data.base import InMemory, Split
from multitask.data.loading import SPLITS, check_counts

_AMPLITUDE = torch.tensor([-200.0, -100.0, -170.0, 15.0], dtype=torch.float64)
_A = torch.tensor([-1.0, -1.0, -6.5, 0.7], dtype=torch.float64)
_B = torch.tensor([0.0, 0.0, 11.0, 0.6], dtype=torch.float64)
_C = torch.tensor([-10.0, -10.0, -6.5, 0.7], dtype=torch.float64)
_X = torch.tensor([1.0, 0.0, -0.5, -1.0], dtype=torch.float64)
_Y = torch.tensor([0.0, 0.5, 1.5, 1.0], dtype=torch.float64)


@dataclass(eq=False)
class MullerBrown(InMemory):
    """The potential of "Location of Saddle Points and Minimum Energy Paths" (Müller and Brown, 1979).

    ``inputs`` ``[2]``, uniform over x from −1.5 to 1.2 and y from −0.2 to 2 where the energy is below 50; ``energy``
    ``[1]``; ``forces`` ``[2]``, its negative gradient.

    Args:
        examples: Number of points for train, validation and test.
        points_seed: Seed of the points: fixed, so that runs of all seeds share one test set.
    """

    examples: Sequence[int] = (1000, 200, 200)
    points_seed: int = 0
    _: KW_ONLY
    batch_size: int | None = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self.examples)

    def load(self) -> dict[str, Split]:
        """Draw the points of all splits."""
        generator = torch.Generator().manual_seed(self.points_seed)
        corner, size = (torch.tensor(v, dtype=torch.float64) for v in ([-1.5, -0.2], [2.7, 2.2]))
        drawn = torch.empty(0, 2, dtype=torch.float64)
        while len(drawn) < sum(self.examples):
            points = corner + size * torch.rand(1024, 2, generator=generator, dtype=torch.float64)
            drawn = torch.cat([drawn, points[potential(points)[0] < 50]])
        splits: dict[str, Split] = {}
        parts = drawn[: sum(self.examples)].split(list(self.examples))
        for name, points in zip(SPLITS, parts, strict=True):
            energy, forces = potential(points)
            arrays = {"inputs": points, "energy": energy[:, None], "forces": forces}
            splits[name] = {key: values.float() for key, values in arrays.items()}
        return splits


def potential(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies ``[n]`` and forces ``[n, 2]`` at points ``[n, 2]`` in float64."""
    x, y = points[:, :1] - _X, points[:, 1:] - _Y
    each = _AMPLITUDE * torch.exp(_A * x**2 + _B * x * y + _C * y**2)
    slopes = [(each * (2 * _A * x + _B * y)).sum(1), (each * (_B * x + 2 * _C * y)).sum(1)]
    return each.sum(1), -torch.stack(slopes, 1)
