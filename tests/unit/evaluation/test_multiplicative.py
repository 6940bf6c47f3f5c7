"""Multiplicative metrics are compared by their logarithms, as scipy does on the logarithms."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from multitask.evaluation.board import from_comparison
from multitask.evaluation.compare import compare, load
from multitask.evaluation.comparison import Comparison, Settings, compare_records
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.plots import delta
from multitask.evaluation.plots.pareto import pareto
from multitask.evaluation.plots.style import looks, styled
from tests.unit.evaluation.hand_records import write_run, write_table

MARKS = ["mse"]
METHODS = {"weighted_sum": 1e-2, "upgrad": 3e-5, "config": 1e-4}


def write(folder: Path, methods: dict[str, float] = METHODS, **run_json: object) -> dict[str, pd.DataFrame]:
    """Write six seeds per method with errors of about a given size; return them, ``[seeds, fields]``."""
    random = np.random.default_rng(1)
    spread = np.exp(random.normal(0, 1.2, (6, 1)))  # per seed, the same for all methods
    values = {}
    for method, size in methods.items():
        errors = size * spread * np.exp(random.normal(0, 0.4, (6, 2)))
        values[method] = pd.DataFrame(errors, columns=["u/mse", "v/mse"])
        for seed, row in values[method].iterrows():
            results = {str(key): float(value) for key, value in row.items()}
            name = f"{method}_{seed}"
            write_run(folder / name, method, int(str(seed)), results, higher=False, **run_json)  # type: ignore[arg-type]
    return values


def compared(folder: Path, **settings: object) -> Comparison:
    (comparison,) = compare_records(load(str(folder)), Settings(**settings))  # type: ignore[arg-type]
    return comparison


def test_means_are_geometric_with_the_interval_of_the_mean_logarithm(tmp_path: Path) -> None:
    values = write(tmp_path, multiplicative=MARKS)
    for entry in compared(tmp_path).entries:
        of_tasks = np.log(values[entry.label]).mean(axis=1)
        for interval, logs in (
            (entry.means["u/mse"], np.log(values[entry.label]["u/mse"])),
            (entry.macro["mse"], of_tasks),
        ):
            expected = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
            assert interval.mean == pytest.approx(stats.gmean(np.exp(logs)), rel=1e-12)
            assert interval.low == pytest.approx(np.exp(expected.low), rel=1e-10)
            assert interval.high == pytest.approx(np.exp(expected.high), rel=1e-10)
            assert interval.half == pytest.approx(interval.high / interval.mean)
            assert interval.half == pytest.approx(interval.mean / interval.low)


def test_pairs_are_ratios_of_geometric_means_with_the_paired_test_of_logarithms(tmp_path: Path) -> None:
    values = write(tmp_path, multiplicative=MARKS)
    comparison = compared(tmp_path, difference=10)
    assert comparison.headline == "mean/mse"
    assert set(comparison.pairs["scale"]) == {"log"}
    row = comparison.pairs.set_index(["metric", "a", "b"]).loc[("u/mse", "upgrad", "weighted_sum")]
    logs = np.log(values["upgrad"]["u/mse"]), np.log(values["weighted_sum"]["u/mse"])
    reference = stats.ttest_rel(*logs)
    interval = reference.confidence_interval(0.95)
    ratio = stats.gmean(values["upgrad"]["u/mse"]) / stats.gmean(values["weighted_sum"]["u/mse"])
    assert np.exp(row["difference"]) == pytest.approx(ratio, rel=1e-12)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert row["p"] == pytest.approx(reference.pvalue, rel=1e-9)
    assert row["deviation"] == pytest.approx(np.std(logs[0] - logs[1], ddof=1), rel=1e-10)
    assert np.exp(row["sought"]) == pytest.approx(1.1, rel=1e-12)


def test_units_do_not_affect_the_tests(tmp_path: Path) -> None:
    values = write(tmp_path / "one", multiplicative=MARKS)
    for method, table in values.items():
        for seed, row in table.iterrows():
            results = {str(key): float(value) * 1e-9 for key, value in row.items()}
            write_run(tmp_path / "other" / f"{method}_{seed}", method, int(str(seed)), results, higher=False)
    one, other = compared(tmp_path / "one"), compared(tmp_path / "other", multiplicative=["mse"])
    columns = ["difference", "low", "high", "p", "needed"]
    pd.testing.assert_frame_equal(one.pairs[columns], other.pairs[columns], rtol=1e-9)


def test_delta_is_the_difference_of_mean_logarithms_with_welchs_interval(tmp_path: Path) -> None:
    values = write(tmp_path, METHODS | {"single_task": 1e-3}, multiplicative=MARKS)
    comparison = compared(tmp_path)
    logs = {method: np.log(table).mean(axis=1) for method, table in values.items()}
    for entry in comparison.entries:
        assert entry.delta_m is not None
        test = stats.ttest_ind(logs[entry.label], logs["single_task"], equal_var=False)
        interval = test.confidence_interval(0.95)
        expected = 100 * (logs[entry.label].mean() - logs["single_task"].mean())
        assert entry.delta_m.mean == pytest.approx(expected, rel=1e-10)
        assert (entry.delta_m.low, entry.delta_m.high) == pytest.approx(
            (100 * interval.low, 100 * interval.high)
        )
    assert [entry.label for entry in comparison.entries] == ["upgrad", "config", "weighted_sum"]
    assert (
        "For u/mse, v/mse, Δm and Δp use 100 ln(M/B): −69 is half as much, 69 twice." in comparison.cautions
    )
    formula = from_comparison(comparison).delta_m
    assert formula is not None
    for entry in comparison.entries:
        assert entry.deltas is not None
        for seed, row in values[entry.label].iterrows():
            expression = formula
            for key, value in row.items():
                expression = expression.replace(f"${{test/{key}}}", repr(float(value)))
            assert eval(expression) == pytest.approx(
                entry.deltas.per_seed.loc[str(seed), "delta_m"], rel=1e-6
            )


def test_other_metrics_keep_their_relative_change(tmp_path: Path) -> None:
    for method, error, accuracy in (("single_task", 1e-2, 0.5), ("upgrad", 1e-4, 0.6)):
        for seed in range(3):
            results = {"u/mse": error * (1 + 0.1 * seed), "c/accuracy": accuracy}
            higher = {"u/mse": False, "c/accuracy": True}
            write_run(
                tmp_path / f"{method}{seed}", method, seed, results, higher=higher, multiplicative=MARKS
            )
    (entry,) = compared(tmp_path).entries
    assert entry.deltas is not None
    assert entry.deltas.gains["u/mse"].mean == pytest.approx(100 * np.log(100))
    assert entry.deltas.gains["c/accuracy"].mean == pytest.approx(20)
    assert entry.delta_m is not None
    assert entry.delta_m.mean == pytest.approx(-(100 * np.log(100) + 20) / 2)


def test_key_of_compare_overrides_the_marks_of_runs(tmp_path: Path) -> None:
    write(tmp_path, multiplicative=MARKS)
    assert not compared(tmp_path, multiplicative=[]).metrics["log"].any()
    assert compared(tmp_path).metrics["log"].all()
    rows = [
        {"method": "uw", "seed": seed, "task": "u", "metric": "mse", "split": "test", "value": 10.0**-seed}
        | {"higher_is_better": False}
        for seed in range(3)
    ]
    table = write_table(tmp_path / "their.csv", rows)
    assert compared(table).entries[0].means["u/mse"].mean == pytest.approx(0.37)
    assert compared(table, multiplicative=["u/mse"]).entries[0].means["u/mse"].mean == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("value", "settings", "message"),
    [
        (0.0, {}, r"u/mse of .*bad is 0 and has no logarithm to be compared by; set multiplicative=\[v/mse\]\."),
        (-1.0, {"multiplicative": ["mse"]}, "u/mse of .*bad is -1 and has no logarithm"),
        (1.0, {"multiplicative": ["l1"]}, "multiplicative=l1: no record has it on the split test; choices: u/mse"),
        (1.0, {"multiplicative": ["u/mse"]}, "multiplicative: mse is named for one task but not for another"),
    ],
)  # fmt: skip
def test_values_without_logarithm_and_unknown_metrics_are_rejected(
    value: float, settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    write(tmp_path, multiplicative=MARKS)
    write_run(tmp_path / "bad", "upgrad", 9, {"u/mse": value, "v/mse": 1.0}, higher=False)
    with pytest.raises(ComparisonError, match=message):
        compared(tmp_path, **settings)
    assert compared(tmp_path, multiplicative=[]).entries


def test_plots_have_log_axes_and_asymmetric_intervals(tmp_path: Path) -> None:
    values = write(tmp_path, METHODS | {"single_task": 1e-3}, multiplicative=MARKS)
    comparison = compared(tmp_path)
    with styled():
        look = looks(METHODS)
        drawn = delta.tasks(comparison, look), pareto(comparison, look)
    for figure in drawn:
        assert figure is not None
        assert all(axes.get_xscale() == "log" for axes in figure.axes)
    assert drawn[1] is not None
    assert drawn[1].axes[0].get_yscale() == "log"
    assert drawn[0] is not None
    (bars,) = drawn[0].axes[0].containers[0].lines[2]
    (low, high) = bars.get_segments()[0][:, 0]
    test = stats.ttest_1samp(np.log(values["upgrad"]["u/mse"]), 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((np.exp(test.low), np.exp(test.high)))


def test_terminal_page_and_tables_show_ratios(tmp_path: Path) -> None:
    values = write(tmp_path / "runs", multiplicative=MARKS)
    printed = io.StringIO()
    compare(str(tmp_path / "runs"), tmp_path / "out", console=Console(file=printed, width=200))
    ratio = stats.gmean(values["upgrad"].to_numpy().ravel()) / stats.gmean(
        values["config"].to_numpy().ravel()
    )
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for text in (printed.getvalue(), page):
        assert "config / upgrad" in text or "upgrad / config" in text
        assert f"{ratio:.3g}×" in text or f"{1 / ratio:.3g}×" in text
    mean = stats.gmean(values["upgrad"]["u/mse"])
    assert f"{mean:.4g} ×/÷ ".replace("-", "−") in printed.getvalue()
    assert "Row over column" in page
    results = pd.read_csv(tmp_path / "out" / "means.csv")
    assert results["multiplicative"].all()
    assert results.set_index(["method", "task"])["mean"]["upgrad", "u"] == pytest.approx(mean, rel=1e-12)
    assert set(pd.read_csv(tmp_path / "out" / "pairs.csv")["scale"]) == {"log"}
