"""Toy objectives: their values, gradients and Pareto sets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multitask.task.toys import Quadratic, Valleys, non_dominated


def written_out(number: int, x: float, y: float) -> float:
    """Return an objective of CAGrad's appendix, term by term."""
    if number == 1:
        f = math.log(max(abs(0.5 * (-x - 7) - math.tanh(-y)), 0.000005)) + 6
        g = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    else:
        f = math.log(max(abs(0.5 * (-x + 3) - math.tanh(y) + 2), 0.000005)) + 6
        g = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    return max(math.tanh(0.5 * y), 0) * f + max(math.tanh(-0.5 * y), 0) * g


@given(st.sampled_from([1, 2]), st.floats(-10, 10), st.floats(-10, 10))
def test_valleys_equal_the_paper(number: int, x: float, y: float):
    value = Valleys(number).values(torch.tensor([[x, y]], dtype=torch.float64))
    assert float(value) == pytest.approx(written_out(number, x, y), abs=1e-9)


def test_scale_and_reduction():
    points = torch.tensor([[1.0, 2.0], [-3.0, -4.0]])
    whole = Valleys(1, reduction="none")(points, torch.zeros(2, 2))
    assert torch.equal(Valleys(1)(points, torch.zeros(2, 2)), whole.mean())
    torch.testing.assert_close(
        Valleys(1, scale=0.1, reduction="none")(points, torch.zeros(2, 2)), 0.1 * whole
    )


def test_pareto_set_of_the_valleys_is_the_line_below():
    x, y = torch.linspace(-10, 10, 201), torch.linspace(-10, 10, 401)
    grid = torch.cartesian_prod(x, y)
    kept = grid[non_dominated(torch.stack([Valleys(i).values(grid) for i in (1, 2)], dim=-1))]
    assert kept[:, 0].min() == pytest.approx(-7, abs=0.11)
    assert kept[:, 0].max() == pytest.approx(7, abs=0.11)
    assert (kept[:, 1] + 8.36).abs().max() < 0.45


def test_pareto_set_of_quadratics_is_the_line_between_their_centers():
    first, second = Quadratic([-2, 1], [1, 3]), Quadratic([4, 1], [1, 3], scale=10)
    grid = torch.cartesian_prod(torch.linspace(-5, 5, 101), torch.linspace(-5, 5, 101))
    kept = grid[non_dominated(torch.stack([first.values(grid), second.values(grid)], dim=-1))]
    torch.testing.assert_close(kept[:, 1], torch.ones(len(kept)), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept[:, 0], torch.linspace(-2, 4, 61), atol=1e-5, rtol=0)


def test_quadratic_by_hand():
    assert float(Quadratic([1, 2], [2, 4], scale=3).values(torch.tensor([[2.0, 4.0]]))) == 3 * 0.5 * (2 + 16)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_non_dominated_by_definition(values: list[tuple[int, int]]):
    expected = [not any(a <= x and b <= y and (a, b) != (x, y) for a, b in values) for x, y in values]
    assert non_dominated(torch.tensor(values, dtype=torch.float32)).tolist() == expected


def test_errors_name_the_key():
    with pytest.raises(ValueError, match="number"):
        Valleys(3)
    with pytest.raises(ValueError, match="curvature"):
        Quadratic([0, 0], [1, 0])
    with pytest.raises(ValueError, match="reduction"):
        Valleys(1, reduction="sum")
