"""Training curves from the runs' metrics.csv: losses, weights and conflict, with bands over seeds."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from multitask.evaluation.statistics import CONFIDENCE

KINDS = {
    "train_loss": re.compile(r"train/loss/(?P<name>.+)"),
    "val_loss": re.compile(r"val/loss/(?P<name>.+)"),
    "weight": re.compile(r"weight/(?P<name>.+)"),
    "cosine": re.compile(r"conflict/cosine/(?P<name>.+)"),
}
BINS = 50
CURVE_COLUMNS = ["kind", "name", "label", "step", "mean", "low", "high", "n"]


def read_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean and 95 % t band over seeds of every curve of the runs (columns label, metrics_file).

    The steps of an experiment are divided into 50 intervals. A run enters each with its mean, so that runs that log
    more often do not weigh more. `low` and `high` are NaN with one seed.
    """
    tables = [
        _run_curves(Path(run.metrics_file)).assign(run=run.Index, label=run.label)
        for run in runs.itertuples()
        if run.metrics_file
    ]
    tables = [table for table in tables if len(table)]
    if not tables:
        return pd.DataFrame(columns=CURVE_COLUMNS)
    points = pd.concat(tables, ignore_index=True)
    width = max(float(points["step"].max()) + 1, BINS) / BINS
    points["bin"] = (points["step"] // width).astype(int)
    keys = ["kind", "name", "label"]
    by_run = points.groupby([*keys, "bin", "run"], as_index=False)[["step", "value"]].mean()
    result = by_run.groupby([*keys, "bin"]).agg(
        step=("step", "mean"), mean=("value", "mean"), sem=("value", "sem"), n=("value", "count")
    )
    half = result["sem"] * stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(result["n"] - 1, 1))
    return result.assign(low=result["mean"] - half, high=result["mean"] + half).reset_index()[CURVE_COLUMNS]


def read_metrics(file: Path, wanted: Callable[[str], bool]) -> pd.DataFrame:
    """The columns step and those wanted of a run's metrics.csv, as numbers; one without steps is empty."""
    try:
        table = pd.read_csv(file, usecols=lambda name: name == "step" or wanted(name), on_bad_lines="skip")
    except pd.errors.EmptyDataError:  # a run that logged nothing leaves an empty file
        table = pd.DataFrame()
    if "step" not in table:
        return pd.DataFrame({"step": []})
    # A line that was cut short, or a word, is no point of a curve.
    return table.apply(pd.to_numeric, errors="coerce").dropna(subset=["step"])


def _run_curves(file: Path) -> pd.DataFrame:
    table = read_metrics(file, lambda name: bool(_kind(name)))
    curves = []
    weights = [name for name in table.columns if name.startswith("weight/")]
    if weights:
        # Methods scale their weights differently; what can be compared is each task's share.
        table[weights] = table[weights].div(table[weights].abs().sum(axis=1, min_count=1), axis=0)
    for column in table.columns:
        kind = _kind(column)
        if kind is not None:
            known = table[["step", column]].dropna().rename(columns={column: "value"})
            curves.append(known.assign(kind=kind[0], name=kind[1]))
    return (
        pd.concat(curves, ignore_index=True)
        if curves
        else pd.DataFrame(columns=["kind", "name", "step", "value"])
    )


def _kind(column: str) -> tuple[str, str] | None:
    for kind, pattern in KINDS.items():
        match = pattern.fullmatch(column)
        if match:
            return kind, match["name"]
    return None
