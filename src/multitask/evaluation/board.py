"""The content of an experiment's dashboard: tasks, logged values, sweeps, and Δm as a formula."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multitask.evaluation.compare import load
from multitask.evaluation.comparison import Comparison, Settings, compare_records
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.names import logged


@dataclass(frozen=True)
class Board:
    """An experiment as its runs log it.

    `metrics`: task → names of its metrics besides the loss. `keys`: compared task/metric → its key in the logs.
    `lower`: the task/metric for which lower is better. `sweeps`: the W&B groups to show; all if empty.
    `delta_m`: Δm of a run as a W&B expression, or None, with the reason in `no_delta_m`.
    """

    experiment: str
    metrics: Mapping[str, tuple[str, ...]]
    keys: dict[str, str]
    lower: frozenset[str]
    sweeps: tuple[str, ...] = ()
    delta_m: str | None = None
    no_delta_m: str = ""


def from_records(source: str | Sequence[str], baselines: str | None, settings: Settings) -> list[Board]:
    """Return a board for every experiment with finished runs in the sources."""
    compared = compare_records(load(source, baselines), settings)
    boards = [from_comparison(each) for each in compared if each.rows and not each.published]
    if not boards:
        raise ComparisonError(
            f"source={source} contains no results of finished runs; give a sweep that has some."
        )
    return boards


def from_comparison(comparison: Comparison) -> Board:
    """Return the board of an experiment that has been compared."""
    table, split = comparison.metrics, comparison.settings.split
    metrics: dict[str, tuple[str, ...]] = dict.fromkeys(table["task"], ())
    for _, row in table[table["metric"] != "loss"].iterrows():
        metrics[row["task"]] += (row["metric"],)
    keys = {str(key): logged(split, row["task"], row["metric"]) for key, row in table.iterrows()}
    reason = next((entry.refusal for entry in comparison.rows if entry.refusal), comparison.refusal)
    return Board(
        experiment=comparison.experiment,
        metrics=metrics,
        keys=keys,
        lower=frozenset(str(key) for key in table.index[table["higher"] == False]),  # noqa: E712 - None is neither
        sweeps=tuple(sorted(set(comparison.counted_runs["sweep"]) - {""})),
        delta_m=None if reason else _delta_m(comparison, keys),
        no_delta_m=reason,
    )


def from_tasks(experiment: str, tasks: Mapping[str, Sequence[str]], split: str) -> Board:
    """Return the board of an experiment from its config alone; `tasks`: task → names of its metrics."""
    names = [(task, metric) for task, own in tasks.items() for metric in own or ["loss"]]
    return Board(
        experiment=experiment,
        metrics={task: tuple(own) for task, own in tasks.items()},
        keys={f"{task}/{metric}": logged(split, task, metric) for task, metric in names},
        lower=frozenset(f"{task}/loss" for task, metric in names if metric == "loss"),
        no_delta_m="a config has no results of single-task training; give source=<sweep folder>",
    )


def _delta_m(comparison: Comparison, keys: Mapping[str, str]) -> str:
    """Return Δm of one run, linear in its values or their logarithms: W&B's mean over seeds is Δm of the method."""
    assert comparison.baseline is not None
    terms = []
    for key, mean in comparison.baseline.values.mean().items():
        metric, value = comparison.metrics.loc[key], f"${{{keys[str(key)]}}}"
        change = f"{value} / {mean:.10g} - 1"
        if metric["log"]:
            # W&B's expressions have powers and no logarithm: sinh(h ln x) / h is ln x to (h ln x)² / 6 of it.
            base = f"{math.exp(mean):.10g}"
            change = f"(({value} / {base}) ** 0.0001 - ({base} / {value}) ** 0.0001) / 0.0002"
        terms.append(f"{'-' if metric['higher'] else '+'} ({change})")
    return f"{100 / len(terms):.10g} * (0 {' '.join(terms)})"
