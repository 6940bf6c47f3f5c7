"""Inner products of long rows are as exact as those of short ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multitask.gradients.rows import _BLOCK, _SHORT, inner_products


@given(
    k=st.integers(1, 4),
    others=st.integers(1, 4),
    n=st.sampled_from(
        [0, 1, _BLOCK, _SHORT, _SHORT + 1, _SHORT + _BLOCK - 1, _SHORT + _BLOCK, 2 * _SHORT + 7]
    ),
    padding=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_equal_to_a_single_product(k: int, others: int, n: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(n + 10 * k + others)
    rows = torch.randn(k, n + padding, generator=generator, dtype=torch.float64)[:, :n]
    beside = torch.randn(others, n, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(inner_products(rows, beside), rows @ beside.T, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("k", [2, 8])
def test_rounding_of_millions_of_terms(k: int) -> None:
    # Terms of one sign, as on the diagonal of a Gramian, where a single long sum drifts.
    rows = torch.rand(k, 3_000_000, generator=torch.Generator().manual_seed(0))
    exact = rows.double() @ rows.double().T
    error = ((inner_products(rows, rows).double() - exact).abs() / exact).max()
    assert error < 1e-6
