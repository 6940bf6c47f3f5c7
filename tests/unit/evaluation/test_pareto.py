import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from multitask.evaluation.plane import hypervolume, on_front

POINTS = arrays(float, st.tuples(st.integers(1, 8), st.just(2)), elements=st.integers(0, 9).map(float))


@given(POINTS)
def test_front_contains_the_points_that_are_not_dominated(points: np.ndarray) -> None:
    for point, kept in zip(points, on_front(points), strict=True):
        dominated = any((other <= point).all() and (other < point).any() for other in points)
        assert kept == (not dominated)


@given(POINTS, st.integers(1, 9), st.integers(1, 9))
def test_hypervolume_counts_the_dominated_unit_squares(points: np.ndarray, x: int, y: int) -> None:
    squares = sum(
        any(point[0] <= i and point[1] <= j for point in points) for i in range(x) for j in range(y)
    )
    assert hypervolume(points, np.array([x, y], dtype=float)) == pytest.approx(squares)


def test_points_beyond_the_reference_have_no_hypervolume() -> None:
    assert hypervolume(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([1.0, 1.0])) == 0
