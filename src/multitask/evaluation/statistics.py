"""Intervals, paired tests and sample sizes, from scipy and statsmodels."""

import gc
import math
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import ttest_power

CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 1_000_000

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean over `n` seeds with its 95 % confidence interval; the bounds are NaN if there is none.

    `log`: the mean is geometric, and the interval is that of the mean logarithm.
    """

    mean: float
    low: float
    high: float
    n: int
    log: bool = False

    @property
    def half(self) -> float:
        """Half the width of the interval, or with `log` the factor to its upper end; NaN if there is none."""
        return self.high / self.mean if self.log else (self.high - self.low) / 2


def _of_order_one(*tables: Array) -> tuple[list[Array], NDArray[np.int_]]:
    """Divide columns `[n, k]` by powers of two, so that squares neither overflow nor underflow; return both."""
    largest = np.fmax.reduce([np.fmax.reduce(np.abs(table), axis=0, initial=0.0) for table in tables])
    powers = np.frexp(largest)[1]
    return [np.ldexp(table, -powers) for table in tables], powers


def mean_intervals(table: pd.DataFrame, log: Iterable[bool] | None = None) -> list[Interval]:
    """Return mean and t interval of every column of a [seeds, k] table, over the seeds that have a value.

    `log` [k]: whether a column holds logarithms, so that its mean is geometric.
    """
    (values,), powers = _of_order_one(table.to_numpy(dtype=float))
    scaled = pd.DataFrame(values)
    n = scaled.count()
    half = scaled.sem() * stats.t.ppf((1 + CONFIDENCE) / 2, (n - 1).clip(lower=1))
    mean, half = (np.ldexp(column.to_numpy(dtype=float), powers) for column in (scaled.mean(), half))
    intervals = [
        Interval(float(m), float(m - h), float(m + h), int(k)) for m, h, k in zip(mean, half, n, strict=True)
    ]  # sem is NaN with one seed, so the bounds are too
    marks = [False] * len(n) if log is None else log
    return [_geometric(i) if is_log else i for i, is_log in zip(intervals, marks, strict=True)]


def _geometric(interval: Interval) -> Interval:
    with np.errstate(over="ignore"):
        mean, low, high = (float(np.exp(value)) for value in interval[:3])
    return Interval(mean, low, high, interval.n, log=True)


def shifted_intervals(values: Array, noise: Array) -> list[Interval]:
    """Return intervals of the means of `values` [n, k], with the variance of `noise` [b, k] added.

    `noise` is the contribution, by seed, of an independently measured constant, here the baseline; its mean is zero.
    The interval is Welch's. There is none if either has fewer than two seeds.
    """
    n = len(values)
    means = _mean(values)
    low, high = np.full_like(means, math.nan), np.full_like(means, math.nan)
    if n > 1 and len(noise) > 1:
        low, high, _ = _welch(values, noise)
    return [Interval(float(m), float(a), float(b), n) for m, a, b in zip(means, low, high, strict=True)]


def paired_tests(differences: Array, noise: Array | None = None) -> tuple[Array, Array, Array]:
    """Return lower bound, upper bound and two-sided p of the mean of paired differences [n, k], by column.

    With `noise` [b, k] (see `shifted_intervals`) the test is Welch's, otherwise the paired t test.
    All are NaN with fewer than two pairs.
    """
    k = differences.shape[1]
    if len(differences) < 2:
        return np.full(k, math.nan), np.full(k, math.nan), np.full(k, math.nan)
    if noise is not None and len(noise) > 1:
        return _welch(differences, noise)
    return _welch(differences, None)


def _mean(values: Array) -> Array:
    """Return the mean of every column `[n, k]`."""
    (scaled,), powers = _of_order_one(values)
    return np.ldexp(scaled.mean(axis=0), powers)


def _deviation(values: Array) -> Array:
    """Return the standard deviation of every column `[n, k]` of at least two rows."""
    (scaled,), powers = _of_order_one(values)
    return np.ldexp(scaled.std(axis=0, ddof=1), powers)


def _welch(values: Array, noise: Array | None) -> tuple[Array, Array, Array]:
    (values, *apart), powers = _of_order_one(*([values] if noise is None else [values, noise]))
    noise = apart[0] if apart else None
    spread = values.std(axis=0) if noise is None else values.std(axis=0) + noise.std(axis=0)
    with warnings.catch_warnings():
        # scipy warns of columns without spread, which are corrected below.
        warnings.simplefilter("ignore", RuntimeWarning)
        if noise is None:
            result = stats.ttest_1samp(values, 0.0)
        else:
            result = stats.ttest_ind(values, noise, equal_var=False)
        interval = result.confidence_interval(CONFIDENCE)
    means = values.mean(axis=0)
    still = spread <= 1e-14 * np.abs(means)  # the interval is then a point, and p is 0 or 1
    low, high = (np.ldexp(np.where(still, means, bound), powers) for bound in (interval.low, interval.high))
    return low, high, np.where(still, np.where(means == 0, 1.0, 0.0), result.pvalue)


def holm(p: Array) -> Array:
    """Return Holm's adjusted p values over the entries that are not NaN.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    adjusted = np.full_like(p, math.nan)
    tested = ~np.isnan(p)
    if tested.any():
        gc.freeze()  # statsmodels runs a garbage collection in every call: 0.2 s with all objects of the process
        try:
            adjusted[tested] = multipletests(p[tested], method="holm")[1]
        finally:
            gc.unfreeze()
    return adjusted


def seeds_needed(deviation: Array, difference: Array, alpha: Array) -> Array:
    """Return the fewest pairs with which a paired t test at level `alpha` finds `difference` with 80 % power, `[k]`.

    `deviation` is the standard deviation of the paired differences. The result is NaN if it is NaN, and infinite if
    a million pairs are not enough.
    """
    result = np.full(len(deviation), math.nan)
    known = np.isfinite(deviation) & (difference > 0)
    difference, alpha = difference[known], alpha[known]
    effect = difference / np.maximum(deviation[known], difference / 50)  # above, the t distribution overflows

    def enough(n: NDArray[np.int_]) -> NDArray[np.bool_]:
        # The two-sided test's other tail is negligible at this power, but NaN in floating point.
        return np.asarray(ttest_power(effect, n, alpha / 2, alternative="larger") >= POWER)

    low, high = np.full(len(effect), 1), np.full(len(effect), 2)
    while (short := ~enough(high) & (high < MOST_SEEDS)).any():
        low, high = np.where(short, high, low), np.where(short, high * 2, high)
    while (high - low > 1).any():
        middle = np.maximum((low + high) // 2, 2)
        reached = enough(middle)
        high, low = np.where(reached, middle, high), np.where(reached, low, middle)
    result[known] = np.where(high < MOST_SEEDS, high, math.inf)
    return result


def pairs(
    table: pd.DataFrame,
    *,
    figure: str,
    sought: float,
    noise: pd.DataFrame | None = None,
    log: bool = False,
) -> pd.DataFrame:
    """Test the difference of every two columns of a [seeds, labels] table, paired by seed, Holm-corrected.

    `sought` is the difference for which the needed number of seeds is computed, in units of the table. `noise`
    [baseline seeds, labels] is each label's share of the baseline's variance; only its differences count.
    `log` says that the table contains logarithms, which the column `scale` repeats.
    Two labels with fewer than two common seeds are not tested; only the difference over common seeds is returned.
    """
    names = list(table.columns)
    first, second = np.triu_indices(len(names), k=1)
    values = table.to_numpy(dtype=float)
    differences = values[:, first] - values[:, second]
    shared = (
        None
        if noise is None
        else noise.to_numpy(dtype=float)[:, first] - noise.to_numpy(dtype=float)[:, second]
    )
    result = pd.DataFrame(
        {
            "figure": figure,
            "scale": "log" if log else "linear",
            "a": [names[i] for i in first],
            "b": [names[j] for j in second],
            "n": np.isfinite(differences).sum(axis=0),
        }
    )
    columns = ["difference", "low", "high", "deviation", "p"]
    result[columns] = math.nan
    # Pairs with the same seeds in common are tested in one call.
    patterns: dict[bytes, list[int]] = {}
    for k in range(differences.shape[1]):
        patterns.setdefault(np.isfinite(differences[:, k]).tobytes(), []).append(k)
    for members in patterns.values():
        block = differences[np.ix_(np.isfinite(differences[:, members[0]]), members)]
        if len(block) == 0:
            continue
        low, high, p = paired_tests(block, None if shared is None else shared[:, members])
        deviation = _deviation(block) if len(block) > 1 else np.full(len(members), math.nan)
        result.loc[members, columns] = np.stack([_mean(block), low, high, deviation, p], axis=1)
    result["p_holm"] = holm(result["p"].to_numpy())
    result["separable"] = result["p_holm"] < 1 - CONFIDENCE
    tested = int(result["p"].notna().sum())
    # Holm compares the smallest p with alpha / tested; a number that is enough at this level is enough for any rank.
    result["level"], result["sought"] = (1 - CONFIDENCE) / max(tested, 1), sought
    return result
