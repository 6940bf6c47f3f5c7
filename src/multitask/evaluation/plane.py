"""The plane of two metrics in which fronts are compared: its rows, fronts, and the area they dominate."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multitask.evaluation.comparison import Comparison
from multitask.evaluation.entries import Entry
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.statistics import Array

ALL = "all methods"


@dataclass(frozen=True)
class Plane:
    """Two metrics and the rows that have both; `reference` is the worst value of each over all rows.

    `volumes`: the hypervolume of each front, and of all rows together, in units of the two metrics.
    """

    keys: tuple[str, str]
    higher: tuple[bool, bool]
    entries: list[Entry]
    reference: tuple[float, float]
    volumes: dict[str, float]


def plane(comparison: Comparison) -> Plane | None:
    """Return the two metrics to plot: those of `pareto`, or the first metric of each task if there are two tasks."""
    directed = comparison.metrics[comparison.metrics["higher"].notna()]
    wanted = comparison.settings.pareto
    if wanted is None and directed["task"].nunique() != 2:
        return None
    keys = list(directed.drop_duplicates("task").index if wanted is None else wanted)
    if len(keys) != 2 or any(key not in directed.index for key in keys):
        raise ComparisonError(
            f"pareto={keys}: name two compared task/metric; choices: {', '.join(directed.index)}."
        )
    entries = [
        entry for entry in comparison.rows if not any(math.isnan(entry.means[key].mean) for key in keys)
    ]
    if len(entries) < 2:
        return None
    x, y = keys
    higher = (bool(directed.loc[x, "higher"]), bool(directed.loc[y, "higher"]))
    worst = losses_of(entries, keys, higher).max(axis=0)
    groups = {
        method: [entry for entry in entries if entry in front] for method, front in comparison.fronts.items()
    }
    volumes = {
        name: hypervolume(losses_of(group, keys, higher), worst)
        for name, group in (groups | {ALL: entries}).items()
        if group
    }
    reference = worst * signs(higher)
    return Plane((x, y), higher, entries, (float(reference[0]), float(reference[1])), volumes)


def signs(higher: tuple[bool, bool]) -> Array:
    """Return the factors that make lower better."""
    return np.where(higher, -1.0, 1.0)


def losses_of(entries: list[Entry], keys: list[str], higher: tuple[bool, bool]) -> Array:
    """Return the rows' two metrics `[entries, 2]`, lower is better."""
    return np.array([[entry.means[key].mean for key in keys] for entry in entries]) * signs(higher)


def on_front(losses: Array) -> NDArray[np.bool_]:
    """Return which rows of `losses` [n, d], lower is better, no other row dominates; equal rows are all kept."""
    no_worse = (losses[:, None] <= losses[None]).all(axis=2)
    better = (losses[:, None] < losses[None]).any(axis=2)
    return np.asarray(~(no_worse & better).any(axis=0))


def hypervolume(losses: Array, reference: Array) -> float:
    """Return the area that the points `losses` [n, 2], lower is better, dominate below `reference` [2].

    A point that is not better than the reference in both metrics adds nothing. Source: Zitzler and Thiele,
    Multiobjective Evolutionary Algorithms: A Comparative Case Study (1999).
    """
    inside = losses[(losses < reference).all(axis=1)]
    front = inside[on_front(inside)]
    front = np.unique(front, axis=0)  # sorted by the first metric, so the second decreases
    if len(front) == 0:
        return 0.0
    upper = np.concatenate([[reference[1]], front[:-1, 1]])
    return float(((reference[0] - front[:, 0]) * (upper - front[:, 1])).sum())
