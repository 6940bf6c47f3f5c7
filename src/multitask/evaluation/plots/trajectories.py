"""Trajectories of a toy problem's point in many runs: one panel per method, all starts in each."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from multitask.evaluation.errors import ComparisonError

_COLUMNS = 3  # of panels


@dataclass(frozen=True)
class Trajectory:
    """One run; ``steps`` is its ``trajectory.csv`` and ``landscape`` its ``landscape.npz``."""

    method: str
    steps: pd.DataFrame
    landscape: dict[str, NDArray]


def read_trajectories(source: Path) -> list[Trajectory]:
    """Read the trajectories of all runs under a folder."""
    found = []
    for table in sorted(source.glob("**/trajectory.csv")):
        method = json.loads((table.parent / "run.json").read_text(encoding="utf-8"))["method"]
        with np.load(table.parent / "landscape.npz", allow_pickle=False) as file:
            found.append(Trajectory(method, pd.read_csv(table), dict(file)))
    if not found:
        raise ComparisonError(
            f"source={source} contains no trajectory; make some with python scripts/train.py -m experiment=toy "
            "weighting=weighted_sum,upgrad 'trunk.start=[-8.5,7.5],[-8.5,-5],[9,9]'."
        )
    return found


def draw_trajectories(trajectories: list[Trajectory]) -> Figure:
    """Draw one panel per method over the mean objective's contours and the Pareto set."""
    methods = list(dict.fromkeys(each.method for each in trajectories))
    columns = min(_COLUMNS, len(methods))
    rows = -(-len(methods) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for panel, method in zip(panels, methods, strict=False):
        _panel(panel, method, [each for each in trajectories if each.method == method])
    for panel in panels[len(methods) :]:
        panel.set_axis_off()
    return figure


def _panel(panel: Axes, method: str, trajectories: list[Trajectory]) -> None:
    below = trajectories[0].landscape
    panel.contour(below["x1"], below["x2"], below["mean"].T, levels=25, cmap="Greys", linewidths=0.5)
    panel.plot(*below["pareto_set"].T, ".", color="tab:grey", markersize=3, zorder=2)
    for each in trajectories:
        x1, x2 = each.steps["x1"].to_numpy(), each.steps["x2"].to_numpy()
        panel.scatter(x1, x2, c=np.linspace(0, 1, len(x1)), cmap="autumn", s=2, zorder=3)
        panel.plot(x1[0], x2[0], "o", color="black", markersize=6, zorder=4)
        panel.plot(x1[-1], x2[-1], "*", color="black", markersize=9, zorder=5)
    panel.set_title(method, parse_math=False)
    panel.set(xlabel="$x_1$", ylabel="$x_2$")
    panel.set_xlim(float(below["x1"][0]), float(below["x1"][-1]))
    panel.set_ylim(float(below["x2"][0]), float(below["x2"][-1]))
    panel.label_outer()
