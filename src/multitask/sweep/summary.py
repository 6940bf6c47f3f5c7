"""The table at the end of a sweep: every run with its status and results."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from multitask.evaluation.names import COMBINED
from multitask.sweep.plan import Job
from multitask.sweep.state import COMPLETED, FAILED, read_record, read_rows, status_of
from multitask.terminal import decimal, terminal

# More columns than this do not fit a terminal; then each metric's mean over tasks is shown instead.
MOST_COLUMNS = 8
# Keys of the problem, whose results are not comparable.
_PROBLEM = re.compile(r"\+{0,2}(experiment|data(?!\.batch_size\b)|tasks?|only)\b")

Metrics = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Summary:
    """The outcome of a sweep's jobs.

    Args:
        jobs: The jobs.
        statuses: Their statuses.
        varied: The keys that differ between jobs, except those that have a column already.
        metrics: Their metrics by task and name; empty if a job has not completed.
    """

    jobs: Sequence[Job]
    statuses: Sequence[str]
    varied: Sequence[str]
    metrics: Sequence[Metrics]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Task and metric of every result of any job."""
        return list(dict.fromkeys(key for found in self.metrics for key in found))

    def settings(self, job: Job) -> list[str]:
        """Return a job's values of the varied keys."""
        own = _by_key(job)
        return [own.get(name, "") for name in self.varied]


def summarize(jobs: Sequence[Job]) -> Summary:
    """Read the jobs' folders."""
    statuses = [status_of(job.folder) for job in jobs]
    metrics = [
        read_metrics(job.folder) if status == COMPLETED else {}
        for job, status in zip(jobs, statuses, strict=True)
    ]
    return Summary(jobs, statuses, _varied(jobs), metrics)


def show(summary: Summary, name: str) -> None:
    """Print one table of all jobs, and why jobs failed."""
    shown = summary
    if len(shown.columns) > MOST_COLUMNS:
        shown = replace(summary, metrics=[_means(found) for found in summary.metrics])
    from rich.table import Table  # deferred, for a fast start

    table = Table(title=f"sweep {name}", title_justify="left")
    for name in ("method", *shown.varied):
        table.add_column(name, overflow="fold")
    table.add_column("seed", justify="right")
    table.add_column("status", overflow="fold")
    for task, metric in shown.columns:
        table.add_column(f"{task}\n{metric}", justify="right", overflow="fold")
    for job, status, found in zip(shown.jobs, shown.statuses, shown.metrics, strict=True):
        cells = [decimal(found[key]) if key in found else "" for key in shown.columns]
        table.add_row(job.method, *map(_short, shown.settings(job)), str(job.seed), status, *cells)
    terminal().print(table)
    for sentence in best_settings(summary):
        print(sentence)
    for job, status in zip(shown.jobs, shown.statuses, strict=True):
        if status == FAILED:
            print(f"failed: {job.folder.name}: {read_record(job.folder).get('error')}")


def best_settings(summary: Summary) -> list[str]:
    """Return the best setting of each method, by the metric that selected its weights, in one sentence each.

    A setting's value is the mean over its seeds; a setting that lacks a seed of another is skipped. Runs on different
    data or tasks are not compared.
    """
    values: dict[tuple[str, ...], dict[tuple[str, ...], dict[int, float]]] = {}
    for job, status in zip(summary.jobs, summary.statuses, strict=True):
        record = read_record(job.folder)
        rule, value = record.get("selection") or "", record.get("selected_value")
        if status == COMPLETED and value is not None and rule.startswith(("min ", "max ")):
            each = [f"{key}={own}" for key, own in zip(summary.varied, summary.settings(job), strict=True)]
            problem = [setting for setting in each if _PROBLEM.match(setting)]
            of_method = values.setdefault((job.method, rule, *problem), {})
            setting = tuple(setting for setting in each if setting not in problem)
            of_method.setdefault(setting, {})[job.seed] = float(value)
    found = []
    for (method, rule, *problem), of_method in values.items():
        seeds = {seed for by_seed in of_method.values() for seed in by_seed}
        means = {s: fmean(each.values()) for s, each in of_method.items() if each.keys() == seeds}
        if len(of_method) > 1 and means:
            best = (min if rule.startswith("min ") else max)(means, key=lambda setting: means[setting])
            over = "" if len(seeds) == 1 else f", mean of {len(seeds)} seeds"
            name = " ".join([method, *problem])
            found.append(f"best of {name} by {rule}: {' '.join(best)} ({decimal(means[best])}{over})")
    return found


def read_metrics(folder: Path) -> Metrics:
    """Return a run's results on the test split, or on the last split it has, by task and metric.

    The loss of a task with metrics is left out, and so is the combined loss.
    """
    path = folder / "results.csv"
    if not path.is_file():
        return {}
    rows = [row for row in read_rows(path) if row["task"] != COMBINED]
    if not rows:
        return {}
    split = "test" if any(row["split"] == "test" for row in rows) else rows[-1]["split"]
    found = {(r["task"], r["metric"]): float(r["value"]) for r in rows if r["split"] == split}
    with_metrics = {task for task, metric in found if metric != "loss"}
    return {(task, m): value for (task, m), value in found.items() if m != "loss" or task not in with_metrics}


def _short(value: str) -> str:
    """Return a value of a search with at most four significant digits if it is a long number."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def _means(metrics: Metrics) -> Metrics:
    by_metric: dict[str, list[float]] = {}
    for (_, metric), value in metrics.items():
        by_metric.setdefault(metric, []).append(value)
    return {("mean", metric): sum(values) / len(values) for metric, values in by_metric.items()}


def _by_key(job: Job) -> dict[str, str]:
    return {key: value for key, _, value in (override.partition("=") for override in job.overrides)}


def _varied(jobs: Sequence[Job]) -> list[str]:
    """Return the keys that differ between jobs, except those that have a column already."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for key, value in _by_key(job).items():
            values.setdefault(key, set()).add(value)
    return [
        key for key, found in values.items() if len(found) > 1 and key not in ("weighting", "method", "seed")
    ]
