"""Every member returns finite weights for Gramians of rank one and zero, and for a single task."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.weighting.members import NAMES, NEEDS_THREE, STOCHASTIC, N, losses_of, make, update_rows
from tests.unit.weighting.promises import SCALARIZATIONS

METHODS = sorted(set(NAMES) - set(SCALARIZATIONS))
DTYPES = [torch.float64, torch.float32]


def row(seed: int) -> Tensor:
    return torch.nn.functional.normalize(
        torch.randn(1, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def check(name: str, J: Tensor, steps: int = 3) -> None:
    """Assert that updates are finite and at most a thousand times as long as the gradients together."""
    combiner = make(name, len(J)).to(J.dtype)
    losses = losses_of(len(J)).to(J.dtype)
    for _ in range(steps):
        done = update_rows(losses, J, combiner)
        assert done.vector.isfinite().all()
        assert done.heads.isfinite().all()
        assert done.weights is None or done.weights.isfinite().all()
        assert float(done.vector.double().norm()) <= 1e3 * max(1.0, float(J.double().norm(dim=1).sum()))
    # Only PCD can be infeasible: it requires gains of tasks whose gradients may oppose each other.
    infeasible = name == "pcd" and bool(J[0].any()) and bool((J[1:] @ J[1:].T < 0).any())
    assert combiner.failures == (steps if infeasible else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 99), factors=st.lists(st.floats(-3, 3), min_size=5, max_size=7))
@example(seed=0, factors=[2.0, 0.0, -1.0, 2.0, 0.0])
def test_rank_one(name: str, dtype: torch.dtype, seed: int, factors: list[float]) -> None:
    """Collinear gradients, some opposed or zero, whose norms differ by up to a factor of 1e6."""
    lengths = torch.tensor([0.0 if abs(f) < 0.3 else 10.0**f * (-1) ** i for i, f in enumerate(factors)])
    check(name, (lengths.double()[:, None] * row(seed)).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients(name: str, m: int, dtype: torch.dtype) -> None:
    if name not in NEEDS_THREE or m >= 3:
        check(name, torch.zeros(m, N, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(set(METHODS) - NEEDS_THREE))
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99), size=st.floats(-6, 6))
def test_one_task_follows_its_own_gradient(name: str, dtype: torch.dtype, seed: int, size: float) -> None:
    J = (10.0**size * row(seed)).to(dtype)
    combiner = make(name, 1).to(dtype)
    done = update_rows(losses_of(1).to(dtype), J, combiner)
    assert done.vector.isfinite().all()
    if name not in STOCHASTIC:
        cosine = torch.nn.functional.cosine_similarity(done.vector.double(), J[0].double(), dim=0)
        assert cosine > 1 - 1e-5
