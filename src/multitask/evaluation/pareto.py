"""Pareto fronts of two metrics, and their hypervolume."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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
