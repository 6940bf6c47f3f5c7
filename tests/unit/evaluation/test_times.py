"""Steps until validation reaches a target, for known histories."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from multitask.evaluation import page, tables, terminal
from multitask.evaluation.compare import load
from multitask.evaluation.comparison import Settings, compare_records
from multitask.evaluation.errors import ComparisonError
from tests.unit.evaluation.hand_records import write_run, write_table

# Validation errors after 10, 20, 30 and 40 steps, by method and seed.
HISTORIES: dict[str, list[list[float | str]]] = {
    "config": [[0.9, 0.4, 0.6, 0.3], [0.5, 0.4, 0.3, 0.2], [0.9, 0.8, "", 0.5]],
    "uw": [[0.9, 0.8, 0.7, 0.6], [0.9, 0.5, 0.4, 0.3], [0.9, 0.8, 0.8, 0.7]],
    "mgda": [["", 0.9, 0.4, 0.3], [0.9, 0.9, 0.9, 0.9]],
}
SECONDS = {"config": 0.5, "uw": 0.25}


def write(folder: Path, key: str = "val/u/mse") -> None:
    for method, seeds in HISTORIES.items():
        for seed, history in enumerate(seeds):
            # Rows of training lie between rows of validation, and steps start at 0.
            curves: list[dict[str, Any]] = [{"step": step, "train/loss/u": 1.0} for step in range(0, 40, 3)]
            curves += [{"step": 10 * n + 9, key: value} for n, value in enumerate(history)]
            cost: dict[str, Any] = {"step_seconds": SECONDS[method]} if method in SECONDS else {}
            results = {"u/mse": 0.1 + seed / 10}
            write_run(folder / f"{method}{seed}", method, seed, results, higher=False, curves=curves, **cost)


def compared(source: Path, **settings: Any) -> Any:
    (found,) = compare_records(load(str(source)), Settings(**settings))
    return found


def test_runs_that_never_reach_the_target_count_as_the_latest(tmp_path: Path) -> None:
    write(tmp_path)
    comparison = compared(tmp_path, targets={"mse": 0.5, "u/mse": 0.3})
    tables.write([comparison], tmp_path)
    each = pd.read_csv(tmp_path / "times.csv").set_index(["target", "method"])
    nan = np.nan
    np.testing.assert_array_equal(each["steps"][0.5, "config"], [20, 10, 40])
    np.testing.assert_array_equal(each["steps"][0.5, "uw"], [nan, 20, nan])
    np.testing.assert_array_equal(each["seconds"][0.5, "config"], [10, 5, 20])
    np.testing.assert_array_equal(each["seconds"][0.5, "mgda"], [nan, nan])
    methods = pd.read_csv(tmp_path / "targets.csv").set_index(["target", "method"])
    columns = ["runs", "reached", "steps", "seconds"]
    expected = {
        (0.5, "config"): [3, 3, 20, 10],
        (0.5, "uw"): [3, 1, nan, nan],
        (0.5, "mgda"): [2, 1, nan, nan],  # half of them: the median is between a number and none
        (0.3, "config"): [3, 2, 40, 20],
        (0.3, "uw"): [3, 1, nan, nan],
        (0.3, "mgda"): [2, 1, nan, nan],
    }
    for row, values in expected.items():
        np.testing.assert_array_equal(methods.loc[row, columns].to_numpy(dtype=float), values)
    printed = io.StringIO()
    terminal.show([comparison], Console(file=printed, width=200))
    for text in (printed.getvalue(), page.render([comparison], [[]])):
        assert "Until validation reaches u/mse ≤ 0.5" in " ".join(text.split())
        assert "2 of 3" in text
        assert "1 of 2" in text


def test_target_of_an_accuracy_is_reached_from_below(tmp_path: Path) -> None:
    curves = [{"step": 9, "val/a/accuracy": 0.7}, {"step": 19, "val/a/accuracy": 0.8}]
    for method in ("uw", "config"):
        write_run(tmp_path / method, method, 0, {"a/accuracy": 0.8}, higher=True, curves=curves)
    assert compared(tmp_path, targets={"accuracy": 0.75}).times["steps"].tolist() == [20, 20]


def test_runs_without_a_history_are_reported(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "uw1" / "metrics.csv").unlink()
    found = compared(tmp_path, targets={"mse": 0.5})
    assert "Not every run has a validation of u/mse: uw 2 of 3." in found.cautions
    assert (found.times["label"] == "uw").sum() == 2


def test_target_without_validation_metric_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "runs", key="val/v/mse")
    with pytest.raises(
        ComparisonError, match="targets=l1: no record has it on the split test; choices: u/mse"
    ):
        compared(tmp_path / "runs", targets={"l1": 0.5})
    with pytest.raises(ComparisonError, match=r"targets=mse: no run has val/u/mse in its metrics\.csv"):
        compared(tmp_path / "runs", targets={"mse": 0.5})
    rows = [
        {"method": method, "seed": 0, "task": "u", "metric": "mse", "split": "test", "value": 0.1}
        | {"higher_is_better": ""}
        for method in ("uw", "config")
    ]
    table = write_table(tmp_path / "their.csv", rows)
    with pytest.raises(ComparisonError, match="targets=mse: no record says whether more of u/mse is better"):
        compared(table, targets={"mse": 0.5})
