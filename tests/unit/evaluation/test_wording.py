"""Numbers in columns are short for every magnitude."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitask.evaluation.statistics import Interval
from multitask.evaluation.wording import amount, digits, metric


def column(means: list[float], half: float = float("nan")) -> list[str]:
    intervals = [Interval(mean, mean - half, mean + half, 3) for mean in means]
    return [metric(interval, digits(intervals)) for interval in intervals]


@pytest.mark.parametrize(
    ("means", "half", "shown"),
    [
        ([0.793, 0.8012], 0.012, ["0.793 ± 0.012", "0.801 ± 0.012"]),
        ([0.25, 0.3125], float("nan"), ["0.2500", "0.3125"]),
        ([123456.0], float("nan"), ["123456"]),
        ([1e300, 1e-300], float("nan"), ["1e+300", "0"]),
        ([-2.5e12], float("nan"), ["−2.5e+12"]),
        ([1.05e-310, 1e-310], float("nan"), ["1.05e−310", "1e−310"]),
        ([3.21e-9], 1.5e-9, ["3.21e−09 ± 1.5e−09"]),
        ([5e-324], float("nan"), ["0.00"]),
    ],
)  # fmt: skip
def test_metrics(means: list[float], half: float, shown: list[str]) -> None:
    assert column(means, half) == shown


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_no_metric_is_wide(means: list[float]) -> None:
    assert all(len(text) <= 21 for text in column(means))


@pytest.mark.parametrize(("value", "shown"), [(-0.0, "0"), (-0.25, "−0.25"), (0.125, "0.125")])
def test_zero_has_no_sign(value: float, shown: str) -> None:
    assert amount(pd.Series({"scale": "linear", "metric": "left/accuracy"}), value) == shown
