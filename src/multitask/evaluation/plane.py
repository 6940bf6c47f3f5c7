"""The plane of two metrics in which fronts are compared: its rows, and the area they dominate."""

import math
from dataclasses import dataclass

import numpy as np

from multitask.evaluation.comparison import Comparison
from multitask.evaluation.entries import Entry
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.pareto import Array, hypervolume

ALL = "all methods"


@dataclass(frozen=True)
class Plane:
    """Two metrics and the rows that have both; `reference` is the worst value of each over all rows."""

    keys: tuple[str, str]
    higher: tuple[bool, bool]
    entries: list[Entry]
    reference: tuple[float, float]
    volumes: dict[str, float]


def plane(comparison: Comparison) -> Plane | None:
    """Return the two metrics to plot: those of `pareto`, or the first metric of each task if there are two tasks.

    `volumes` has the hypervolume of each front, and of all rows together, in units of the two metrics.
    """
    directed = comparison.metrics[comparison.metrics["higher"].notna()]
    wanted = comparison.settings.pareto
    if wanted is not None:
        keys = list(wanted)
        if len(keys) != 2 or any(key not in directed.index for key in keys):
            raise ComparisonError(
                f"pareto={keys}: name two compared task/metric; choices: {', '.join(directed.index)}."
            )
    elif directed["task"].nunique() == 2:
        keys = list(directed.reset_index().groupby("task")["key"].first())
    else:
        return None
    entries = [
        entry for entry in comparison.rows if not any(math.isnan(entry.means[key].mean) for key in keys)
    ]
    if len(entries) < 2:
        return None
    higher = (bool(directed.loc[keys[0], "higher"]), bool(directed.loc[keys[1], "higher"]))
    losses = losses_of(entries, keys, higher)
    worst = losses.max(axis=0)
    groups = {
        method: [entry for entry in entries if entry in front] for method, front in comparison.fronts.items()
    }
    volumes = {
        method: hypervolume(losses_of(front, keys, higher), worst)
        for method, front in groups.items()
        if front
    }
    volumes[ALL] = hypervolume(losses, worst)
    sign = signs(higher)
    reference = (float(worst[0] * sign[0]), float(worst[1] * sign[1]))
    return Plane((keys[0], keys[1]), higher, entries, reference, volumes)


def signs(higher: tuple[bool, bool]) -> Array:
    """Return the factors that make lower better."""
    return np.where(higher, -1.0, 1.0)


def losses_of(entries: list[Entry], keys: list[str], higher: tuple[bool, bool]) -> Array:
    """Return the rows' two metrics `[entries, 2]`, lower is better."""
    return np.array([[entry.means[key].mean for key in keys] for entry in entries]) * signs(higher)
