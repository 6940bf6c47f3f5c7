"""Tensors are checked to be finite, even if their sum overflows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from multitask.gradients.rows import are_finite

LARGEST = torch.finfo(torch.float32).max
numbers = st.sampled_from([0.0, 1.0, -1.0, LARGEST, -LARGEST, float("inf"), -float("inf"), float("nan")])


@given(st.lists(st.lists(numbers, max_size=4), min_size=1, max_size=4))
def test_each_tensor_is_checked_separately(values: list[list[float]]) -> None:
    tensors = [torch.tensor(each) for each in values]
    assert are_finite(tensors) == [bool(tensor.isfinite().all()) for tensor in tensors]


def test_dtypes_may_differ() -> None:
    full = torch.tensor([6e4, 6e4], dtype=torch.float16)  # finite, but their sum is not
    assert are_finite([full, torch.ones(2, 2, dtype=torch.float64), torch.tensor(float("nan"))]) == [
        True,
        True,
        False,
    ]
