"""Formats numbers and sentences for the terminal and the page."""

import math
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from multitask.evaluation.comparison import Comparison
from multitask.evaluation.deltas import DELTA_M, DELTA_P
from multitask.evaluation.plane import Plane
from multitask.evaluation.statistics import Interval
from multitask.evaluation.times import by_method

NOTHING = "–"
_LARGE = 1e9


def number(value: float, decimals: int | None = 2) -> str:
    """Return a number with fixed decimals and a real minus sign, or in scientific notation if they do not suit it.

    NaN is a dash; `decimals=None` is scientific notation with four digits.
    """
    if math.isnan(value):
        return NOTHING
    if decimals is None or abs(value) >= _LARGE:
        return f"{value:.4g}".replace("-", "−")
    text = f"{value:.{decimals}f}"
    return _signed(text)


def _signed(text: str) -> str:
    """Return a number with a minus sign, and zero without a sign."""
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def p_value(p: float) -> str:
    """Return a p value; one that rounds to zero is shown as an upper bound."""
    return "<0.001" if p < 0.0005 else number(p, 3)


def percent(interval: Interval | None) -> str:
    """Return a change in percent with two decimals, and the half width of its interval."""
    return metric(interval, 2)


def digits(intervals: Iterable[Interval]) -> int | None:
    """Return the decimals of a column: two digits of the usual half width, else four of the mean.

    `None`, for scientific notation, if these would be more than eight.
    """
    known = [interval for interval in intervals if not math.isnan(interval.mean)]
    halves = [interval.half for interval in known if interval.half > 0]
    scales = [half / 10 for half in halves] or [
        abs(interval.mean) / 1000 for interval in known if interval.mean
    ]
    scales = [scale for scale in scales if scale]  # a tenth of the smallest float is zero
    if not scales:
        return 2
    decimals = max(-math.floor(math.log10(statistics.median(scales))), 0)
    return decimals if decimals <= 8 else None


def metric(interval: Interval | None, decimals: int | None) -> str:
    """Return a mean and the half width of its interval; for logarithms, the geometric mean and a factor."""
    if interval is None or math.isnan(interval.mean):
        return NOTHING
    mean = number(interval.mean, None if interval.log else decimals)
    if math.isnan(interval.half):
        return mean
    half = f"×/÷ {interval.half:.3g}" if interval.log else f"± {number(interval.half, decimals)}"
    return f"{mean} {half}"


def column_digits(comparison: Comparison) -> dict[str, int | None]:
    """Return the decimals of every metric's column, and of every macro mean's as mean/<metric>."""
    columns: dict[str, list[Interval]] = {}
    for entry in comparison.rows:
        macro = {f"mean/{name}": interval for name, interval in entry.macro.items()}
        for key, interval in (entry.means | macro).items():
            columns.setdefault(key, []).append(interval)
    for key, interval in comparison.baseline_means.items():
        columns.setdefault(key, []).append(interval)
    return {name: digits(intervals) for name, intervals in columns.items()}


def ratio(value: float) -> str:
    """Return a cost relative to the reference."""
    return NOTHING if math.isnan(value) else f"{value:.2f}×"


def arrow(higher: bool | None) -> str:
    """Return the arrow of the better direction."""
    return "" if higher is None else "↑" if higher else "↓"


def metric_name(name: str) -> str:
    """Return the name of a metric in the table of pairs."""
    if name.startswith("mean/"):
        return f"mean {name.removeprefix('mean/')} over tasks"
    return {DELTA_M: "Δm", DELTA_P: "Δp"}.get(name, name)


def amount(pair: pd.Series, value: float) -> str:
    """Return a difference in the metric of a row of pairs, without its unit; for logarithms, the ratio."""
    if math.isnan(value):
        return NOTHING
    if pair["scale"] == "log":
        return f"{np.exp(value):.3g}×"
    return number(value) if pair["metric"] in (DELTA_M, DELTA_P) else _signed(f"{value:.3g}")


def sought(pair: pd.Series) -> str:
    """Return the difference for which seeds are needed, with its unit."""
    return amount(pair, pair["sought"]) + " points" * (pair["metric"] in (DELTA_M, DELTA_P))


def names(a: str, b: str, scale: str) -> str:
    """Return the name of two methods' difference, or of their ratio on a logarithmic scale."""
    return f"{a} {'/' if scale == 'log' else '−'} {b}"


def pair_cells(pair: pd.Series) -> dict[str, Any]:
    """Return the cells of a row of the table of pairs."""
    low, high = amount(pair, pair["low"]), amount(pair, pair["high"])
    return {
        "names": names(pair["a"], pair["b"], pair["scale"]),
        "difference": amount(pair, pair["difference"]),
        "interval": NOTHING if low == NOTHING else f"{low} … {high}",
        "p": p_value(pair["p_holm"]),
        "needed": seeds_needed(pair),
        "outcome": outcome(pair),
        "verdict": verdict(pair),
        "separable": bool(pair["separable"]),
    }


def outcome(pair: pd.Series) -> str:
    """Return whether the methods of a row of pairs are separable."""
    if pair["n"] == 0:
        return "no seed in common: not tested"
    if math.isnan(pair["p"]):
        return "one seed: not tested"
    return "separable" if pair["separable"] else "not separable"


def seeds_needed(pair: pd.Series) -> str:
    """Return the seeds needed to show the sought difference; empty if the methods are separable or not tested."""
    if math.isnan(pair["p"]) or pair["separable"] or math.isnan(pair["needed"]):
        return ""
    return "no number" if math.isinf(pair["needed"]) else str(int(pair["needed"]))


def verdict(pair: pd.Series) -> str:
    """Return the sentence for a row of the table of pairs."""
    if pair["n"] == 0 or math.isnan(pair["p"]):
        return outcome(pair)
    said = f"{outcome(pair)} with {pair['n']} seeds"
    if not (needed := seeds_needed(pair)):
        return said
    more = f"about {needed} would be needed"
    if math.isinf(pair["needed"]):
        more = "no feasible number of seeds would be enough"
    return f"{said}; {more} for a difference of {sought(pair)}"


def hypervolumes(plane: Plane | None) -> str:
    """Return the hypervolumes of the fronts of two metrics, and their reference point."""
    if plane is None:
        return ""
    worst = ", ".join(f"{key} {value:.4g}" for key, value in zip(plane.keys, plane.reference, strict=True))
    volumes = "; ".join(f"{name} {volume:.4g}" for name, volume in plane.volumes.items())
    return f"Hypervolume, against the worst value of each metric among all rows ({worst}): {volumes}."


def times(comparison: Comparison) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """Return each target with every method's steps, seconds and number of runs that reached it."""
    found: dict[tuple[str, float], list[tuple[str, str, str, str]]] = {}
    for row in by_method(comparison.times).itertuples():
        steps, seconds = number(row.steps, 0), number(row.seconds, 1)
        words = (row.label, steps, seconds, f"{row.reached} of {row.runs}")
        found.setdefault((row.metric, row.target), []).append(words)
    higher = comparison.metrics["higher"]
    return [
        (f"{metric} {'≥' if higher[metric] else '≤'} {goal:g}", rows)
        for (metric, goal), rows in found.items()
    ]


def findings(comparison: Comparison) -> list[str]:
    """Return the two or three main findings as sentences."""
    sentences = []
    entries = comparison.entries
    if entries and entries[0].delta_m:
        several = sum(entry.delta_m is not None for entry in entries) > 1
        what = "lowest Δm:" if several else "Δm"
        sentences.append(f"{entries[0].label} has the {what} {percent(entries[0].delta_m)} %.")
    elif comparison.refusal and comparison.rows:
        sentences.append(f"There is no Δm: {comparison.refusal}.")
    elif entries and all(entry.refusal for entry in entries):
        sentences.append(f"There is no Δm: {entries[0].refusal}.")
    table = comparison.headline_pairs
    tested = table[table["p"].notna()]
    name = metric_name(comparison.headline)
    if len(tested):
        apart = int(tested["separable"].sum())
        sentences.append(
            f"{_share(apart, len(tested))} can be separated on {name}, by seed and after Holm’s correction."
        )
        first = entries[0].label
        same = tested[~tested["separable"].astype(bool)].itertuples()
        others = [row.b if row.a == first else row.a for row in same if first in (row.a, row.b)]
        if others and apart:
            sentences.append(f"Not separable from {first}: {', '.join(others)}.")
    elif len(entries) > 1:
        sentences.append(
            "With one seed per method there is neither an interval nor a test: no ranking is supported."
        )
    if stamped := [entry.label for entry in comparison.rows if entry.on_test]:
        sentences.append(f"Selected on the test split, so the results are too good: {', '.join(stamped)}.")
    return sentences


def _share(some: int, of: int) -> str:
    if of == 1:
        return "The one pair of methods" if some else "No pair of the two methods"
    return f"All {of} pairs" if some == of else f"{some} of {of} pairs" if some else f"None of the {of} pairs"
