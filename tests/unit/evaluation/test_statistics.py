"""Intervals, tests and sample sizes against scipy and statsmodels."""

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower

from multitask.evaluation.statistics import (
    holm,
    mean_intervals,
    pairs,
    seeds_needed,
    shifted_intervals,
    t_test,
)

RANDOM = np.random.default_rng(7)


def test_mean_interval_is_the_t_interval() -> None:
    values = RANDOM.normal(3, 2, 6)
    interval = mean_intervals(pd.DataFrame({"x": values}))["x"]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.n == 6


def test_one_seed_has_a_mean_but_no_interval() -> None:
    interval = mean_intervals(pd.DataFrame({"x": [0.5]}))["x"]
    assert interval.mean == 0.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.half)
    (shifted,) = shifted_intervals(np.ones((1, 1)), RANDOM.normal(size=(4, 1)))
    assert math.isnan(shifted.half)
    (exact_baseline,) = shifted_intervals(RANDOM.normal(size=(4, 1)), np.zeros((1, 1)))
    assert math.isnan(exact_baseline.half)


def test_missing_seed_affects_only_its_own_metric() -> None:
    first, second = mean_intervals(pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, math.nan]})).values()
    assert (first.n, second.n) == (3, 2)
    assert second.mean == 1.5


def test_intervals_with_baseline_noise_have_nominal_coverage() -> None:
    """4000 experiments with five seeds of a method and four of a noisier baseline; the true value is 1."""
    method = RANDOM.normal(1, 0.5, (5, 4000))
    baseline = RANDOM.normal(0, 1.0, (4, 4000))
    noise = baseline - baseline.mean(axis=0)
    covered = [
        interval.low <= 1 <= interval.high
        for interval in shifted_intervals(method - baseline.mean(axis=0), noise)
    ]
    assert 0.935 < np.mean(covered) < 0.975
    # Intervals without the baseline's variance are far too narrow.
    _, low, high, *_ = t_test(method - baseline.mean(axis=0))
    assert np.mean((low <= 1) & (high >= 1)) < 0.8


def test_paired_test_matches_scipy() -> None:
    a, b = RANDOM.normal(size=(2, 8))
    _, low, high, _, p = t_test((a - b)[:, None])
    expected = stats.ttest_rel(a, b)
    assert p[0] == pytest.approx(expected.pvalue)
    assert (low[0], high[0]) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_constant_differences_have_p_value_zero_or_one() -> None:
    _, low, high, _, p = t_test(np.array([[0.0, 0.5]] * 3))
    assert p.tolist() == [1.0, 0.0]
    assert low.tolist() == high.tolist() == [0.0, 0.5]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_procedure(values: list[float]) -> None:
    p = np.array(values)
    adjusted = holm(p)
    order = np.argsort(p, kind="stable")
    reference, highest = {}, 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        reference[index] = highest
    assert adjusted == pytest.approx([reference[i] for i in range(len(p))])


def test_holm_ignores_missing_p_values() -> None:
    adjusted = holm(np.array([0.01, math.nan, 0.04]))
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04])
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize(
    ("deviation", "difference", "alpha"), [(1.0, 1.0, 0.05), (2.0, 0.5, 0.001), (0.3, 0.2, 0.01)]
)
def test_needed_seeds_are_the_fewest_that_reach_the_power(
    deviation: float, difference: float, alpha: float
) -> None:
    (needed,) = seeds_needed(np.array([deviation]), np.array([difference]), np.array([alpha]))
    solved = TTestPower().solve_power(effect_size=difference / deviation, power=0.8, alpha=alpha)
    assert needed == math.ceil(solved)


def test_needed_seeds_at_the_extremes() -> None:
    deviation = np.array([0.0, 1e-9, 1e9, math.nan, 1.0])
    difference = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    needed = seeds_needed(deviation, difference, np.full(5, 0.05))
    assert needed[:3].tolist() == [2, 2, math.inf]
    assert np.isnan(needed[3:]).all()


@settings(deadline=None, max_examples=25)
@given(st.floats(0.1, 10), st.floats(1.1, 3))
def test_smaller_difference_needs_more_seeds(deviation: float, factor: float) -> None:
    deviations, alpha = np.array([deviation] * 2), np.array([0.05] * 2)
    large, small = seeds_needed(deviations, np.array([1.0, 1.0 / factor]), alpha)
    assert small >= large


def test_pairs_use_common_seeds() -> None:
    table = pd.DataFrame(
        {"a": [1.0, 2.0, 3.0, 4.1], "b": [1.5, 2.4, 3.6, math.nan], "c": [math.nan] * 3 + [1.0]},
        index=["0", "1", "2", "3"],
    )
    result = pairs(table, metric="x", sought=0.1).set_index(["a", "b"])
    reference = stats.ttest_rel([1.0, 2.0, 3.0], [1.5, 2.4, 3.6])
    assert result.loc[("a", "b"), "p"] == pytest.approx(reference.pvalue)
    assert result.loc[("a", "b"), "n"] == 3
    assert result.loc[("a", "c"), "n"] == 1
    assert math.isnan(result.loc[("a", "c"), "p"])
    assert result.loc[("b", "c"), "n"] == 0
    assert math.isnan(result.loc[("b", "c"), "difference"])
    # One pair was tested, so Holm changes nothing.
    assert result.loc[("a", "b"), "p_holm"] == pytest.approx(reference.pvalue)


def test_paired_test_separates_where_the_unpaired_does_not() -> None:
    shared = RANDOM.normal(0, 10, 6)
    table = pd.DataFrame({"a": shared, "b": shared + 1 + RANDOM.normal(0, 0.1, 6)})
    assert pairs(table, metric="x", sought=1)["separable"].item()
    assert stats.ttest_ind(table["a"], table["b"]).pvalue > 0.5


def test_baseline_noise_increases_the_p_value() -> None:
    table = pd.DataFrame(RANDOM.normal([0, 1], 0.3, (5, 2)), columns=["a", "b"])
    noise = pd.DataFrame({"a": [0.5, -0.5, 0.0], "b": [-0.5, 0.5, 0.0]})
    exact = pairs(table, metric="x", sought=1)
    noisy = pairs(table, metric="x", sought=1, noise=noise)
    assert noisy["p"].item() > exact["p"].item()
    assert noisy["difference"].item() == exact["difference"].item()
    # Noise common to both has no effect on their difference.
    common = pd.DataFrame({"a": [0.5, -0.5, 0.0], "b": [0.5, -0.5, 0.0]})
    welch = pairs(table, metric="x", sought=1, noise=common)
    assert welch["p"].item() == pytest.approx(exact["p"].item())


@pytest.mark.parametrize("power", [-1000, -530, 0, 530, 1000])
def test_statistics_are_equivariant_to_units(power: int) -> None:
    """Squares of such numbers underflow or overflow; powers of two scale them without rounding."""
    generator = np.random.default_rng(0)
    values, noise = 1.0 + generator.random((4, 3)), generator.random((3, 3))
    names = list("abc")

    def computed(scale: int) -> tuple[Any, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            there, apart = np.ldexp(values, scale), np.ldexp(noise, scale)
            table = pd.DataFrame(there, columns=names)
            tested = pairs(table, metric="a", sought=1.0, noise=pd.DataFrame(apart, columns=names))
            return (
                np.array([list(interval)[:3] for interval in mean_intervals(table).values()]),
                np.array([list(interval)[:3] for interval in shifted_intervals(there, apart)]),
                tested[["difference", "low", "high", "deviation"]].to_numpy(),
                tested[["p", "p_holm"]].to_numpy(),
            )

    *lengths, p = computed(power)
    *expected, of_one = computed(0)
    for ours, at_one in zip(lengths, expected, strict=True):
        np.testing.assert_array_equal(ours, np.ldexp(at_one, power))
    np.testing.assert_array_equal(p, of_one)
