"""Change against the single-task baseline: Δm over metrics, Δp over tasks, and the gain on every metric.

With s = +1 for a metric where higher is better and −1 otherwise, M the method's and B the baseline's mean:

    Δm = −100/K · Σ over the K metrics of s (M − B)/B                 lower is better
    Δp =  100/T · Σ over the T tasks of the mean of s (M − B)/B       higher is better

For a multiplicative metric, given as logarithms, M and B are geometric means, and (M − B)/B is ln(M/B).

Δm: Maninis et al., Attentive Single-Tasking of Multiple Tasks (2019), in the form of Liu et al.,
Conflict-Averse Gradient Descent (2021), and Navon et al., Multi-Task Learning as a Bargaining Game (2022).
Δp: Vandenhende et al., Multi-Task Learning for Dense Prediction Tasks: A Survey (2021), and Lin and Zhang,
LibMTL (2023).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from multitask.evaluation.names import DELTAS, SINGLE_TASK
from multitask.evaluation.protocol import on_test
from multitask.evaluation.statistics import Interval, mean_intervals, shifted_intervals

DELTA_M, DELTA_P = DELTAS
# Larger multiples of the baseline have no relative change: see docs/comparison.md, The baseline.
MOST_TIMES = 10


@dataclass(frozen=True)
class Baseline:
    """Single-task results `[seeds, metrics]` of complete seeds; `recipes`: task → digest of its recipe."""

    values: pd.DataFrame
    recipes: dict[str, str]
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deltas:
    """The changes of one method; `per_seed` and `noise` hold the columns delta_m and delta_p.

    `per_seed` [seeds, 2] treats the baseline's mean as exact; `noise` [baseline seeds, 2] is the first-order
    effect of the baseline's own variance. `gains`: percent over the baseline by metric; positive is better.
    """

    delta_m: Interval
    delta_p: Interval
    gains: dict[str, Interval]
    per_seed: pd.DataFrame
    noise: pd.DataFrame


def wide(results: pd.DataFrame) -> pd.DataFrame:
    """Return results as `[seeds, metrics]`; each run without a seed is a row of its own."""
    seed = results["seed"].where(results["seed"] != "", "run " + results["run"].astype(str))
    return results.assign(seed=seed).pivot_table(index="seed", columns="key", values="value", aggfunc="mean")


def task_recipes(results: pd.DataFrame) -> dict[str, str]:
    """Return task → digest of its recipe, from rows that share one recipe."""
    return dict(zip(results["task"], results["digest"], strict=True))


def find_baseline(
    results: pd.DataFrame,
    metrics: pd.DataFrame,
    recipes: list[dict[str, str]],
    selections: set[str],
    set_aside: Sequence[str] = (),
) -> tuple[Baseline | None, str]:
    """Return the baseline with the recipe of most methods, task by task, or None and the reason.

    `results`: rows of the single-task runs; `metrics`: index task/metric; `recipes`: each method's, by task.
    If no run of a task has a recipe of the methods, the recipe with most seeds is used, and named as such.
    `set_aside`: why single-task runs are not among the results.
    """
    why = f" ({'; '.join(dict.fromkeys(set_aside))})" if set_aside else ""
    if metrics.empty:
        return None, "no metric has a recorded direction"
    results = results[results["key"].isin(metrics.index)]
    if results.empty:
        found = f"counts{why}" if set_aside else "is among the sources"
        return None, f"no run of the method {SINGLE_TASK} {found}"
    if missing := sorted(set(metrics.index) - set(results["key"])):
        return None, f"the single-task baseline is incomplete: it lacks {', '.join(missing)}{why}"
    chosen: dict[str, str] = {}
    for task, rows in results.groupby("task"):
        assert isinstance(task, str)
        wanted = Counter(recipe[task] for recipe in recipes if task in recipe)
        seeds = rows.groupby("digest")["seed"].nunique()
        chosen[task] = min(seeds.index, key=lambda digest: (-wanted[digest], -seeds[digest], digest))
    results = results[results["digest"] == results["task"].map(chosen)]
    values = wide(results).reindex(columns=metrics.index).dropna()
    if values.empty:
        return None, f"the single-task baseline is incomplete: no seed of it has every task{why}"
    linear = mean_intervals(values[values.columns[~metrics["log"]]])
    for key, interval in linear.items():
        if interval.mean <= 0:
            return None, (
                f"the baseline of {key} is {interval.mean:.4g}; a relative change needs a positive one"
            )
    for key, interval in linear.items():
        if interval.low <= 0:
            return None, (
                f"the baseline of {key} is {interval.mean:.4g}, and its interval over {interval.n} seeds, "
                f"{interval.low:.4g} … {interval.high:.4g}, contains zero, so a relative change could be any number; "
                "run more seeds of it, or name the other metrics with metrics=[…]"
            )
    cautions = _cautions(results, values, selections)
    return Baseline(values, chosen, tuple(cautions)), ""


def dwarfed(means: Mapping[str, Interval], baseline: Baseline) -> str | None:
    """Return why a method has no relative change if one of its values dwarfs the baseline's, else None."""
    for key, of_baseline in baseline.values.mean().items():
        of_method = means[str(key)].mean
        if not means[str(key)].log and abs(of_method) > MOST_TIMES * of_baseline:
            return (
                f"its {key} is {of_method:.4g}, {abs(of_method) / of_baseline:.3g} times the baseline's "
                f"{of_baseline:.4g}, so that this metric alone would decide the mean; name the other metrics with "
                "metrics=[…]"
            )
    return None


def _cautions(rows: pd.DataFrame, values: pd.DataFrame, selections: set[str]) -> list[str]:
    cautions = []
    if incomplete := sorted(set(rows["seed"]) - set(values.index) - {""}):
        cautions.append(
            f"The baseline lacks a task for seed {', '.join(incomplete)}; these seeds are left out of it."
        )
    if len(values) == 1:
        cautions.append(
            "The single-task baseline has one seed: its variance is unknown, so Δm and Δp get no interval, "
            "and the tests of pairs treat it as exact."
        )
    rules = set(rows["selection"])
    if rules != selections:
        stated = ", ".join(sorted(rule or "not stated" for rule in rules))
        cautions.append(f"The baseline's results were selected by another rule than the methods': {stated}.")
    if any(on_test(rule) for rule in rules):
        cautions.append("The baseline's results were selected on the test split.")
    return cautions


def deltas(values: pd.DataFrame, baseline: Baseline, metrics: pd.DataFrame) -> Deltas:
    """Return all changes of one method from its complete results `[seeds, metrics]`."""
    sign = np.where(metrics["higher"].astype(bool), 1.0, -1.0)
    in_task = metrics.groupby("task")["task"].transform("size").to_numpy()
    coefficients = np.column_stack(
        [-100 / len(metrics) * sign, 100 / metrics["task"].nunique() / in_task * sign, np.diag(100 * sign)]
    )
    x, b = values[metrics.index].to_numpy(), baseline.values[metrics.index].to_numpy()
    mean = b.mean(axis=0)
    unit = np.where(metrics["log"], 1.0, mean)
    changes = (x - mean) / unit @ coefficients
    # d/dB of (M − B)/B is −M/B², and d/d(ln B) of ln(M/B) is −1; the sign does not affect the variance. B² could
    # overflow.
    noise = ((b - mean) / unit) * np.where(metrics["log"], 1.0, x.mean(axis=0) / unit) @ coefficients
    intervals = shifted_intervals(changes, noise)
    columns = [DELTA_M, DELTA_P]
    return Deltas(
        delta_m=intervals[0],
        delta_p=intervals[1],
        gains=dict(zip(metrics.index, intervals[2:], strict=True)),
        per_seed=pd.DataFrame(changes[:, :2], index=values.index, columns=columns),
        noise=pd.DataFrame(noise[:, :2], index=baseline.values.index, columns=columns),
    )
