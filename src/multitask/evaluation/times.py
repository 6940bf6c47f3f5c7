"""Steps and seconds until validation reaches a target, run by run and by method."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from multitask.evaluation.curves import read_metrics
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.metrics import chosen
from multitask.evaluation.names import logged

COLUMNS = ["metric", "target", "label", "method", "variant", "seed", "steps", "seconds"]


def times(
    runs: pd.DataFrame, metrics: pd.DataFrame, targets: Mapping[str, float], split: str
) -> pd.DataFrame:
    """Return the steps and seconds of training after which validation first reached each target, by run and metric.

    Both are NaN if it never did, and seconds if the run has no median step. Runs whose metrics.csv has no validation
    of the metric have no row.

    `runs`: the columns of `Records.runs`, and label; `metrics`: index task/metric, columns task, metric and higher;
    `targets`: the value to reach, by metric or task/metric.
    """
    rows: list[tuple[object, ...]] = []
    for name, target in targets.items():
        for key, metric in metrics[chosen(metrics, "targets", [name], split)].iterrows():
            if pd.isna(metric["higher"]):
                raise ComparisonError(
                    f"targets={name}: no record says whether more of {key} is better; leave it out."
                )
            column, before = logged("val", metric["task"], metric["metric"]), len(rows)
            for run in runs.itertuples():
                curve = _curve(run.metrics_file, column)
                if curve.empty:
                    continue
                reached = curve[curve >= target] if metric["higher"] else curve[curve <= target]
                steps = float(reached.index.min()) + 1  # metrics.csv counts steps from 0
                of_run = (run.label, run.method, run.variant, run.seed)
                rows.append((key, target, *of_run, steps, steps * run.step_seconds))
            if len(rows) == before and runs["metrics_file"].any():
                raise ComparisonError(
                    f"targets={name}: no run has {column} in its metrics.csv; leave it out."
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def _curve(file: str, column: str) -> pd.Series:
    table = read_metrics(Path(file), lambda name: name == column) if file else pd.DataFrame()
    return table.set_index("step")[column].dropna() if column in table else pd.Series(dtype=float)


def by_method(times: pd.DataFrame) -> pd.DataFrame:
    """Return how many runs of each method reached each target, and their median steps and seconds.

    A run that never reached it counts as later than all others: the medians are NaN if half of the runs or more did
    not.
    """
    rows = []
    for key, group in times.groupby(COLUMNS[:5], sort=False):
        reached = group["steps"].notna()
        medians = (np.median(group[name].where(reached, np.inf).to_numpy()) for name in ("steps", "seconds"))
        rows.append((*key, len(group), int(reached.sum()), *medians))
    table = pd.DataFrame(rows, columns=[*COLUMNS[:5], "runs", "reached", "steps", "seconds"])
    return table.replace(np.inf, np.nan)
