"""Losses, weights and conflict over training, with 95 % bands over seeds."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multitask.evaluation.plots.style import BASE, Look, legend, logarithmic, new_figure

MOST_PANELS = 8
ALL_TASKS = "mean over tasks"


def losses(curves: pd.DataFrame, kind: str, look: dict[str, Look]) -> Figure | None:
    """Plot the loss of every task; `kind` is train_loss or val_loss."""
    return _panels(curves, kind, look, "validation loss" if kind == "val_loss" else "training loss", log=True)


def weights(curves: pd.DataFrame, look: dict[str, Look]) -> Figure | None:
    """Plot every task's share of the weights, w / Σ|w|."""
    return _panels(curves, "weight", look, "share of the weights")


def conflict(curves: pd.DataFrame, look: dict[str, Look]) -> Figure | None:
    """Plot the cosine between the gradients of two tasks; below zero they conflict."""
    figure = _panels(curves, "cosine", look, "cosine of two tasks' gradients")
    if figure is not None:
        for axes in figure.axes:
            axes.axhline(0, color=BASE, linewidth=1)
    return figure


def _panels(
    curves: pd.DataFrame, kind: str, look: dict[str, Look], what: str, log: bool = False
) -> Figure | None:
    table = curves[(curves["kind"] == kind) & curves["label"].isin(list(look))]
    if table.empty:
        return None
    names = sorted(table["name"].unique())
    if len(names) > MOST_PANELS:
        # Too many panels to read; the mean has no band, since tasks are not a sample.
        table = table.groupby(["kind", "label", "step"], as_index=False)["mean"].mean()
        table = table.assign(name=ALL_TASKS, low=math.nan, high=math.nan)
        names = [ALL_TASKS]
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure, panels = new_figure(rows * 1.75 + 0.3, rows, columns, sharex=True)
    positive = bool((table["mean"] > 0).all())
    for axes, name in zip(panels, names, strict=False):
        _draw(axes, table[table["name"] == name], look)
        axes.set_title(name.replace("__", " · "))
        if log and positive:
            logarithmic(axes, "y", ticks=8)
            axes.set_ylim(
                bottom=0.7 * float(table[table["name"] == name]["mean"].min())
            )  # bands may include zero
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[max(len(names) - columns, 0) : len(names)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    for axes in panels[: len(names) : columns]:
        axes.set_ylabel(what)
    legend(figure, sorted(table["label"].unique()), look, lines=True)
    return figure


def _draw(axes: Axes, table: pd.DataFrame, look: dict[str, Look]) -> None:
    for label, curve in table.groupby("label"):
        style = look[str(label)]
        axes.plot(curve["step"], curve["mean"], color=style.colour, linestyle=style.dash, linewidth=1.1)
        axes.fill_between(
            curve["step"], curve["low"], curve["high"], color=style.colour, alpha=0.13, linewidth=0
        )
