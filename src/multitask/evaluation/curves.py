"""Training curves from the runs' metrics.csv: losses, weights and conflict, with bands over seeds."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from multitask.evaluation.statistics import CONFIDENCE

KINDS = {"train/loss": "train_loss", "val/loss": "val_loss", "weight": "weight", "conflict/cosine": "cosine"}
KEY = re.compile(f"({'|'.join(KINDS)})/(.+)")
BINS = 50
CURVE_COLUMNS = ["kind", "name", "label", "step", "mean", "low", "high", "n"]


def read_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean and 95 % t band over seeds of every curve of the runs (columns label, metrics_file).

    The steps of an experiment are divided into 50 intervals. A run enters each with its mean, so that runs that log
    more often do not weigh more. `low` and `high` are NaN with one seed.
    """
    tables = [
        curve.assign(run=run.Index, label=run.label)
        for run in runs.itertuples()
        if run.metrics_file
        for curve in _run_curves(Path(run.metrics_file))
    ]
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
    """Return the step and the wanted columns of a run's metrics.csv as numbers; empty if it has no steps."""
    try:
        table = pd.read_csv(file, usecols=lambda name: name == "step" or wanted(name), on_bad_lines="skip")
    except pd.errors.EmptyDataError:  # a run that logged nothing leaves an empty file
        table = pd.DataFrame()
    if "step" not in table:
        return pd.DataFrame({"step": []})
    # A line that was cut short, or a word, is no point of a curve.
    return table.apply(pd.to_numeric, errors="coerce").dropna(subset=["step"])


def _run_curves(file: Path) -> list[pd.DataFrame]:
    """Return the curves of one run that have points: columns step, value, kind and name."""
    table = read_metrics(file, lambda name: KEY.fullmatch(name) is not None)
    weights = [name for name in table.columns if name.startswith("weight/")]
    if weights:
        # Methods scale their weights differently; what can be compared is each task's share.
        table[weights] = table[weights].div(table[weights].abs().sum(axis=1, min_count=1), axis=0)
    curves = []
    for column in table.columns:
        points = table[["step", column]].dropna()
        if (match := KEY.fullmatch(column)) and len(points):
            curves.append(
                points.set_axis(["step", "value"], axis=1).assign(kind=KINDS[match[1]], name=match[2])
            )
    return curves
