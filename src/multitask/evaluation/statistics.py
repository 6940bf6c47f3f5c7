"""Intervals, paired tests and sample sizes from scipy and statsmodels, and mean ranks."""

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


def mean_intervals(table: pd.DataFrame, log: Iterable[bool] | None = None) -> dict[str, Interval]:
    """Return mean and t interval of every column of a [seeds, k] table, over the seeds that have a value.

    `log` [k]: whether a column holds logarithms, so that its mean is geometric.
    """
    (values,), powers = _of_order_one(table.to_numpy(dtype=float))
    scaled = pd.DataFrame(values)
    n = scaled.count()
    half = scaled.sem() * stats.t.ppf((1 + CONFIDENCE) / 2, (n - 1).clip(lower=1))
    mean, half = (np.ldexp(column.to_numpy(dtype=float), powers) for column in (scaled.mean(), half))
    # The standard error is NaN with one seed, so the bounds are too.
    bounds = np.stack([mean, mean - half, mean + half], axis=1)
    geometric = np.zeros(len(n), dtype=bool) if log is None else np.array([*log], dtype=bool)
    with np.errstate(over="ignore"):
        bounds[geometric] = np.exp(bounds[geometric])
    columns = zip(table.columns, bounds.tolist(), n, geometric.tolist(), strict=True)
    return {str(name): Interval(m, a, b, int(k), is_log) for name, (m, a, b), k, is_log in columns}


def shifted_intervals(values: Array, noise: Array) -> list[Interval]:
    """Return intervals of the means of `values` [n, k], with the variance of `noise` [b, k] added: see `t_test`.

    There is none if either has fewer than two seeds.
    """
    mean, low, high, *_ = t_test(values, noise)
    return [
        Interval(float(m), float(a), float(b), len(values)) for m, a, b in zip(mean, low, high, strict=True)
    ]


class TTest(NamedTuple):
    """Mean, confidence interval, standard deviation and two-sided p of every column, each `[k]`."""

    mean: Array
    low: Array
    high: Array
    deviation: Array
    p: Array


def t_test(values: Array, noise: Array | None = None) -> TTest:
    """Test whether the means of `values` [n, k] differ from zero, by Student's test or, with `noise`, by Welch's.

    `noise` [b, k] is the contribution, by seed, of an independently measured constant, here the baseline; its mean is
    zero. With fewer than two rows of either, all but the mean are NaN.
    """
    (values, *apart), powers = _of_order_one(values, *([] if noise is None else [noise]))
    mean = values.mean(axis=0)
    low, high, deviation, p = np.full((4, len(mean)), math.nan)
    if min(map(len, (values, *apart))) > 1:
        with warnings.catch_warnings():
            # scipy warns of columns without spread, which are corrected below.
            warnings.simplefilter("ignore", RuntimeWarning)
            if apart:
                result = stats.ttest_ind(values, *apart, equal_var=False)
            else:
                result = stats.ttest_1samp(values, 0.0)
            interval = result.confidence_interval(CONFIDENCE)
        deviation = values.std(axis=0, ddof=1)
        spread = sum(table.std(axis=0) for table in (values, *apart))
        still = spread <= 1e-14 * np.abs(mean)  # the interval is then a point, and p is 0 or 1
        low, high = (np.where(still, mean, bound) for bound in interval)
        p = np.where(still, np.where(mean == 0, 1.0, 0.0), result.pvalue)
    mean, low, high, deviation = (np.ldexp(column, powers) for column in (mean, low, high, deviation))
    return TTest(mean, low, high, deviation, p)


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
    metric: str,
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
    shared = None
    if noise is not None and len(noise) > 1:  # the variance of a single seed is unknown
        shared = noise.to_numpy(dtype=float)[:, first] - noise.to_numpy(dtype=float)[:, second]
    result = pd.DataFrame(
        {
            "metric": metric,
            "scale": "log" if log else "linear",
            "a": [names[i] for i in first],
            "b": [names[j] for j in second],
            "n": np.isfinite(differences).sum(axis=0),
        }
    )
    columns = ["difference", "low", "high", "deviation", "p"]  # the fields of TTest
    result[columns] = math.nan
    # Pairs with the same seeds in common are tested in one call.
    common = [column.tobytes() for column in np.isfinite(differences).T]
    for members in result.groupby(pd.Series(common)).groups.values():
        block = differences[:, members]
        block = block[np.isfinite(block[:, 0])]
        if len(block):
            test = t_test(block, None if shared is None else shared[:, members])
            result.loc[members, columns] = np.stack(test, axis=1)
    result["p_holm"] = holm(result["p"].to_numpy())
    result["separable"] = result["p_holm"] < 1 - CONFIDENCE
    tested = int(result["p"].notna().sum())
    # Holm compares the smallest p with alpha / tested; a number that is enough at this level is enough for any rank.
    result["level"], result["sought"] = (1 - CONFIDENCE) / max(tested, 1), sought
    return result


def mean_ranks(means: pd.DataFrame, higher: pd.Series) -> pd.DataFrame:
    """Return the columns `rank`, `low`, `high`, one row per label; rank 1 is best, ties share their average rank.

    `means`: [labels, metrics], complete; `higher`: metric → whether higher is better. `low` and `high` are the
    minimum and maximum of a label's mean rank over the full set and all sets without one other label.
    """
    signed = means * [-1.0 if higher[metric] else 1.0 for metric in means.columns]
    full = signed.rank().mean(axis=1)
    result = pd.DataFrame({"rank": full, "low": full, "high": full})
    if len(means) < 3:  # with one label left there is nothing to rank
        return result
    without = pd.DataFrame({label: signed.drop(label).rank().mean(axis=1) for label in signed.index})
    result["low"] = without.min(axis=1).clip(upper=full)
    result["high"] = without.max(axis=1).clip(lower=full)
    return result
