"""Curves of runs, averaged over seeds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from multitask.evaluation.curves import read_curves


def runs(folder: Path, *tables: pd.DataFrame) -> pd.DataFrame:
    files = []
    for number, table in enumerate(tables):
        file = folder / f"{number}.csv"
        table.to_csv(file, index=False)
        files.append(str(file))
    return pd.DataFrame({"label": "uw", "metrics_file": files})


def test_band_is_the_t_interval_over_seeds(tmp_path: Path) -> None:
    values = [1.0, 2.0, 4.0]
    curves = read_curves(
        runs(tmp_path, *(pd.DataFrame({"step": [10], "train/loss/left": [value]}) for value in values))
    )
    (row,) = curves.to_dict("records")
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (row["kind"], row["name"], row["step"], row["n"]) == ("train_loss", "left", 10, 3)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((7 / 3, expected.low, expected.high))


def test_one_seed_has_a_curve_but_no_band(tmp_path: Path) -> None:
    curves = read_curves(runs(tmp_path, pd.DataFrame({"step": [1, 2], "val/loss/left": [1.0, np.nan]})))
    assert len(curves) == 1
    assert curves["low"].isna().all()


def test_weights_are_normalized_and_keep_their_signs(tmp_path: Path) -> None:
    table = pd.DataFrame({"step": [0, 1, 2], "weight/a": [2.0, np.nan, 0.0], "weight/b": [-6.0, np.nan, 0.0]})
    curves = read_curves(runs(tmp_path, table))
    assert curves.set_index("name")["mean"].to_dict() == {"a": 0.25, "b": -0.75}


def test_runs_count_equally_whatever_their_logging_interval(tmp_path: Path) -> None:
    often = pd.DataFrame({"step": range(1000), "conflict/cosine/a__b": 1.0})
    seldom = pd.DataFrame({"step": [0, 999], "conflict/cosine/a__b": 0.0})
    curves = read_curves(runs(tmp_path, often, seldom))
    assert len(curves) == 50
    assert curves["mean"].iloc[[0, -1]].tolist() == [0.5, 0.5]


def test_empty_files_and_other_keys_have_no_curve(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    table = runs(tmp_path, pd.DataFrame({"step": [1], "cost/step_seconds": [0.1], "train/loss": [1.0]}))
    table.loc[1] = ["uw", str(tmp_path / "empty.csv")]
    table.loc[2] = ["uw", ""]
    assert read_curves(table).empty


def test_truncated_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("step,train/loss/left,train/loss/right\n1,0.5,0.25\n2,0.5,nothing\n4")
    curves = read_curves(pd.DataFrame({"label": ["uw"], "metrics_file": [str(tmp_path / "0.csv")]}))
    means = curves.groupby("name")["mean"].agg(list).to_dict()
    assert means == {"left": [0.5, 0.5], "right": [0.25]}
