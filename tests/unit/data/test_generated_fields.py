"""Generated points with energies and forces, and with solutions of the Poisson equation."""

import math

import pytest
import torch

from multitask.data.muller_brown import MullerBrown, potential
from multitask.data.poisson import Poisson


def test_forces_are_the_negative_gradient_of_the_energy() -> None:
    points = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points.requires_grad_()
    energy, forces = potential(points)
    (slope,) = torch.autograd.grad(energy.sum(), points)
    torch.testing.assert_close(forces, -slope)


@pytest.mark.parametrize(
    ("minimum", "energy"), [((-0.558, 1.442), -146.70), ((0.623, 0.028), -108.17), ((-0.050, 0.467), -80.77)]
)
def test_energies_of_the_published_minima(minimum: tuple[float, float], energy: float) -> None:
    found, forces = potential(torch.tensor([minimum], dtype=torch.float64))
    assert float(found) == pytest.approx(energy, abs=0.01)
    assert float(forces.norm()) < 1.0


def test_splits_have_the_requested_sizes_and_are_disjoint() -> None:
    splits = MullerBrown(examples=[30, 7, 5]).load()
    assert [len(splits[name]["inputs"]) for name in ("train", "val", "test")] == [30, 7, 5]
    assert len(torch.cat([s["inputs"] for s in splits.values()]).unique(dim=0)) == 42
    assert all(bool((split["energy"] < 50).all()) for split in splits.values())


def test_training_values_are_known_only_at_the_ends() -> None:
    splits = Poisson(examples=[20, 5, 9], ends=4).load()
    train = splits["train"]
    known = ~train["u"].isnan()
    assert known.sum() == 4
    assert train["inputs"][known].tolist() == [-1, 1, -1, 1]
    torch.testing.assert_close(splits["test"]["u"], torch.sin(math.pi * splits["test"]["inputs"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MullerBrown([3, 0, 1]), r"data\.examples=\[3, 0, 1\]"),
        (lambda: Poisson([9, 1, 9]), r"data\.examples=\[9, 1, 9\]"),
        (lambda: Poisson([9, 9, 9], ends=1), r"data\.ends=1"),
    ],
)
def test_invalid_counts_are_rejected(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
