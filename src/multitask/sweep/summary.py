"""The table that ends a sweep: every run, its status and its figures."""

import csv
from collections.abc import Sequence
from pathlib import Path

from multitask.sweep.plan import Job
from multitask.sweep.state import COMPLETED, FAILED, read_record, status_of

# More figures than this do not fit a terminal: then each metric's mean over tasks is shown.
MOST_COLUMNS = 8

Figures = dict[tuple[str, str], float]


def show(jobs: Sequence[Job], folder: Path) -> None:
    """Print one table of all jobs, the reasons of those that failed, and the sweep's folder."""
    statuses = {job: status_of(job.folder) for job in jobs}
    figures = [read_figures(job.folder) if statuses[job] == COMPLETED else {} for job in jobs]
    columns = list(dict.fromkeys(key for found in figures for key in found))
    if len(columns) > MOST_COLUMNS:
        figures = [_means(found) for found in figures]
        columns = list(dict.fromkeys(key for found in figures for key in found))
    varied = _varied(jobs)
    from rich.console import Console  # here, for a quick start
    from rich.table import Table

    table = Table(title=f"sweep {folder.name}", title_justify="left")
    for name in ("method", *varied):
        table.add_column(name)
    table.add_column("seed", justify="right")
    table.add_column("status")
    for task, metric in columns:
        table.add_column(f"{task}\n{metric}", justify="right")
    for job, found in zip(jobs, figures, strict=True):
        own = _by_key(job)
        cells = [f"{found[key]:.4f}" if key in found else "" for key in columns]
        table.add_row(
            job.method, *(own.get(name, "") for name in varied), str(job.seed), statuses[job], *cells
        )
    console = Console()
    # A file has no width; a table cut at 80 characters would lose figures.
    console.print(table, width=None if console.is_terminal else 400, soft_wrap=not console.is_terminal)
    for job in jobs:
        if statuses[job] == FAILED:
            print(f"failed: {job.folder.name}: {read_record(job.folder).get('error')}")
    print(folder)


def read_figures(folder: Path) -> Figures:
    """Return a run's figures on the test split, or on the last split it has, by task and metric.

    A task's loss is left out where the task has metrics, and the combined loss always: it is no task.
    """
    path = folder / "results.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] != "combined"]
    if not rows:
        return {}
    split = "test" if any(row["split"] == "test" for row in rows) else rows[-1]["split"]
    found = {(r["task"], r["metric"]): float(r["value"]) for r in rows if r["split"] == split}
    with_metrics = {task for task, metric in found if metric != "loss"}
    return {(task, m): value for (task, m), value in found.items() if m != "loss" or task not in with_metrics}


def _means(figures: Figures) -> Figures:
    by_metric: dict[str, list[float]] = {}
    for (_, metric), value in figures.items():
        by_metric.setdefault(metric, []).append(value)
    return {("mean", metric): sum(values) / len(values) for metric, values in by_metric.items()}


def _by_key(job: Job) -> dict[str, str]:
    return {key: value for key, _, value in (override.partition("=") for override in job.overrides)}


def _varied(jobs: Sequence[Job]) -> list[str]:
    """Return the keys that differ between jobs, but for those that have a column already."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for key, value in _by_key(job).items():
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1 and key not in ("weighting", "seed")]
