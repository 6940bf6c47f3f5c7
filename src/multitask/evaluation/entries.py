"""One row of the comparison: a method, or one of its settings, with all its results."""

import math
from dataclasses import dataclass, field

import pandas as pd

from multitask.evaluation.deltas import Baseline, Deltas, deltas, dwarfed, task_recipes, wide
from multitask.evaluation.protocol import on_test
from multitask.evaluation.records import MEASURED
from multitask.evaluation.statistics import Interval, mean_intervals


@dataclass(frozen=True)
class Cost:
    """Means over a method's runs, and their ratios to the reference method's means; NaN if unknown."""

    step_seconds: float = math.nan
    step_ratio: float = math.nan
    peak_memory_mib: float = math.nan
    memory_ratio: float = math.nan
    parameters: float = math.nan


@dataclass
class Entry:
    """A row: `values` [seeds, metrics], logarithms for multiplicative metrics, and the statistics of them.

    `seeds` of `attempted` runs count; `trials` is the number of settings tried for the method; `refusal` says why
    there is no Δ; `rank` is the mean rank, with its minimum and maximum over the whole set and all
    sets without one other method.
    """

    label: str
    method: str
    variant: str
    selection: str
    recipe: str
    task_recipes: dict[str, str]
    source: str
    values: pd.DataFrame
    attempted: int
    trials: int
    means: dict[str, Interval]
    macro: dict[str, Interval]
    cost: Cost
    deltas: Deltas | None = None
    refusal: str = ""
    rank: tuple[float, float, float] | None = None
    cautions: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> int:
        """Number of seeds that are averaged."""
        return len(self.values)

    @property
    def on_test(self) -> bool:
        """Whether the weights were selected on the test split."""
        return on_test(self.selection)

    @property
    def delta_m(self) -> Interval | None:
        """Δm, if there is a baseline for it."""
        return self.deltas.delta_m if self.deltas else None

    @property
    def delta_p(self) -> Interval | None:
        """Δp, if there is a baseline for it."""
        return self.deltas.delta_p if self.deltas else None


def macro_table(values: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over tasks, by seed, of every metric of two or more tasks: `[seeds, metric names]`.

    For a multiplicative metric it is the mean logarithm, like `values`.
    """
    counts = metrics.groupby("metric")["task"].nunique()
    columns = {}
    for name in [each for each in metrics["metric"].unique() if counts[each] > 1]:
        keys = metrics.index[metrics["metric"] == name]
        columns[name] = values.reindex(columns=keys).mean(axis=1, skipna=False)
    return pd.DataFrame(columns, index=values.index)


def costs(runs: pd.DataFrame, reference: str) -> dict[str, Cost]:
    """Return the cost of each label from the counted runs: columns label, method and the three measurements."""
    means = runs.groupby("label")[list(MEASURED)].mean()
    base = runs[runs["method"] == reference][list(MEASURED)].mean()
    means["step_ratio"] = means["step_seconds"] / base["step_seconds"]
    means["memory_ratio"] = means["peak_memory_mib"] / base["peak_memory_mib"]
    return {str(label): Cost(**row) for label, row in means.to_dict("index").items()}


def make_entry(
    results: pd.DataFrame, metrics: pd.DataFrame, *, cost: Cost, attempted: int, trials: int
) -> Entry:
    """Return the row of one label from its counted results."""
    first = results.iloc[0]
    values = wide(results).reindex(columns=metrics.index)
    macro = macro_table(values, metrics)
    macro_log = macro.columns.isin(metrics[metrics["log"]]["metric"])
    entry = Entry(
        label=first["label"],
        method=first["method"],
        variant=first["variant"],
        selection=first["selection"],
        recipe=first["recipe"],
        task_recipes=task_recipes(results),
        source=first["source"],
        values=values,
        attempted=attempted,
        trials=trials,
        means=mean_intervals(values, metrics["log"]),
        macro=mean_intervals(macro, macro_log),
        cost=cost,
    )
    if partly := [f"{key} {n} of {len(values)}" for key, n in values.count().items() if 0 < n < len(values)]:
        entry.cautions.append(f"Not every seed of {entry.label} has every metric: {', '.join(partly)}.")
    if len(values) > 1 and (values.max() == values.min()).all():
        entry.cautions.append(f"All seeds of {entry.label} have identical results: is the seed in use?")
    return entry


def add_deltas(
    entry: Entry, baseline: Baseline | None, refusal: str, directed: pd.DataFrame, accept_other: bool
) -> None:
    """Set Δm and Δp, or the reason why there are none."""
    if baseline is None:
        entry.refusal = refusal
        return
    missing = [key for key in directed.index if math.isnan(entry.means[key].mean)]
    complete = entry.values[directed.index].dropna()
    if missing or complete.empty:
        lacks = f"it lacks {', '.join(missing)}" if missing else "none of its seeds has every metric"
        entry.refusal = f"{entry.label} cannot be compared with the baseline: {lacks}"
        return
    other = [task for task, digest in baseline.recipes.items() if entry.task_recipes[task] != digest]
    if other:
        ours, theirs = entry.task_recipes[other[0]], baseline.recipes[other[0]]
        named = f"{entry.label} trained {other[0]} with {_digest(ours)}, the baseline with {_digest(theirs)}"
        if not accept_other:
            entry.refusal = (
                f"the single-task baseline has another recipe: {named}; add baseline=none,single_task to the "
                "command of the sweep"
            )
            return
        entry.cautions.append(f"Δm and Δp are against a baseline with another recipe: {named}.")
    if why := dwarfed(entry.means, baseline):
        entry.refusal = f"{entry.label} cannot be compared with the baseline: {why}"
        return
    if len(complete) < len(entry.values):
        lost = ", ".join(sorted(set(entry.values.index) - set(complete.index)))
        entry.cautions.append(f"Δm and Δp of {entry.label} leave out seeds without every metric: {lost}.")
    entry.deltas = deltas(complete, baseline, directed)


def _digest(recipe: str) -> str:
    return recipe[:12] if recipe else "(no digest)"
