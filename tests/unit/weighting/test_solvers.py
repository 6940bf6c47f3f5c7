"""The solvers of some members: optimality conditions, and counts of failures."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multitask.weighting import cagrad
from multitask.weighting.bargaining import bargain
from multitask.weighting.gramian import cosines, over_trace
from multitask.weighting.mgda import shortest
from multitask.weighting.simplex import least, nearest_on_simplex, project_onto_simplex
from multitask.weighting.solver_stats import SolverStats
from tests.unit.weighting.members import conflicting, losses_of, make, update

seeds = st.integers(0, 10_000)
sizes = st.integers(1, 9)
scales = st.floats(-8, 8)


def unit_rows(seed: int, k: int, n: int) -> np.ndarray:
    J = np.random.default_rng(seed).standard_normal((k, n))
    return J / np.linalg.norm(J, axis=1, keepdims=True)


@settings(max_examples=80, deadline=None)
@given(seed=seeds, k=sizes, power=st.floats(0.1, 3), spread=st.floats(0, 2))
def test_bargaining_equation_is_solved(seed: int, k: int, power: float, spread: float) -> None:
    """Also with fewer parameters than gradients; there is a solution unless the gradients cancel."""
    U = unit_rows(seed, k, 6)
    U = np.concatenate([U, np.full((k, 1), 0.3)], 1)
    C = U @ U.T
    right = 10.0 ** (spread * np.random.default_rng(seed).uniform(-1, 1, k))
    stats = SolverStats("test")
    v = bargain(C, right, power, 0.0, stats)
    assert (v > 0).all()
    np.testing.assert_allclose(C @ v, right * v**-power, rtol=1e-5)
    assert stats.failures == 0


def test_an_equation_without_a_solution_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    stats = SolverStats("test")
    with caplog.at_level(logging.WARNING), np.errstate(all="ignore"):
        bargain(np.array([[1.0, -3.0], [-3.0, 1.0]]), np.ones(2), 1.0, 0.0, stats)
    assert stats.failures == 1
    assert "test: the equation is solved to" in caplog.text


@settings(max_examples=80, deadline=None)
@given(seed=seeds, k=sizes)
def test_quadratic_program_meets_its_optimality_conditions(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    U = unit_rows(seed, k, 12)
    C, shares, linear = U @ U.T, random.uniform(0.01, 1, k), random.standard_normal(k)
    beta = least(C, shares, linear, 0.0)
    assert (beta >= 0).all()
    assert shares @ beta == pytest.approx(1)
    slope = C @ beta + linear
    price = float(beta @ slope)
    assert (slope - price * shares).min() > -1e-8 * (1 + abs(price))


@settings(max_examples=80, deadline=None)
@given(seed=seeds, k=sizes, exponents=st.lists(scales, min_size=9, max_size=9))
def test_combination_is_the_shortest_for_any_norms(seed: int, k: int, exponents: list[float]) -> None:
    U = unit_rows(seed, k, 12)
    lengths = 10.0 ** np.array(exponents[:k])
    alpha = shortest(U @ U.T, lengths, 1e-14)
    assert alpha.sum() == pytest.approx(1)
    # In units of the shortest gradient, which bounds the length of the result.
    shares = lengths.min() / lengths
    found = alpha / shares @ U
    assert (U @ found - shares * (found @ found)).min() >= -1e-9


@settings(max_examples=80, deadline=None)
@given(vector=st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_projection_onto_the_simplex_is_the_nearest_point(vector: list[float]) -> None:
    v = np.array(vector)
    nearest = nearest_on_simplex(v)
    assert (nearest >= 0).all()
    assert nearest.sum() == pytest.approx(1)
    # No direction to a corner forms an acute angle with the residual.
    assert ((v - nearest) @ (np.eye(len(v)) - nearest).T).max() <= 1e-9
    torch.testing.assert_close(project_onto_simplex(torch.tensor(v)), torch.tensor(nearest))


def test_cagrad_without_a_solution_is_zero_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise ValueError("matrix G is not positive definite")

    monkeypatch.setattr(cagrad, "least", broken)
    combiner = make("cagrad", 3)
    for _ in range(5):
        assert update(combiner, losses_of(3), conflicting(3)).vector.norm() == 0
    assert combiner.failures == 5
    assert combiner.solver_seconds > 0
    assert caplog.text.count("cagrad: no solution (matrix G is not positive definite)") == 3


def test_failures_of_a_wrapped_solver_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(cagrad, "least", broken)
    combiner = make("cagrad", 3, rescale=True, groups="tensor", every=2)
    update(combiner, losses_of(3), conflicting(3))
    assert combiner.failures == 3


def test_failures_are_logged_individually_then_at_powers_of_ten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stats = SolverStats("test")
    for _ in range(120):
        stats.failed("no")
    assert stats.failures == 120
    assert [r.args[2] for r in caplog.records] == [1, 2, 3, 10, 100]  # type: ignore[index]


def test_cosines_and_norms_of_rows_of_very_different_length() -> None:
    J = conflicting(3) * torch.tensor([1e-8, 0.0, 1e8], dtype=torch.float64)[:, None]
    C, norms = cosines(J @ J.T)
    unit = torch.nn.functional.normalize(J, dim=1)
    np.testing.assert_allclose(C, (unit @ unit.T).numpy(), atol=1e-12)
    np.testing.assert_allclose(norms, J.norm(dim=1).numpy())


def test_zero_gramian_is_unchanged() -> None:
    assert over_trace(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]
