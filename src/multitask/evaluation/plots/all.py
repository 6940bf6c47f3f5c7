"""All plots of a comparison, with their captions."""

from dataclasses import dataclass

import pandas as pd

from multitask.evaluation.comparison import Comparison
from multitask.evaluation.plots import curves as over_time
from multitask.evaluation.plots.delta import delta_m, delta_m_cost, tasks
from multitask.evaluation.plots.pareto import pareto
from multitask.evaluation.plots.style import looks, png, styled


@dataclass(frozen=True)
class Plot:
    """A PNG with its caption, which is also its alternative text."""

    name: str
    caption: str
    png: bytes


CAPTIONS = {
    "delta_m": "Δm by method, best on top; bars are 95 % intervals that include the baseline's variance. "
    "Hollow diamonds are published values.",
    "delta_m_cost": "Δm against the time of a training step. Lower left is better.",
    "tasks": "Every metric of every task, with 95 % intervals over seeds.",
    "pareto": "Two tasks against each other: means over seeds with 95 % intervals; steps are the front of a "
    "weight sweep, dashed lines the single-task baseline.",
    "train_loss": "Training loss of every task: mean over seeds and 95 % band.",
    "val_loss": "Validation loss of every task: mean over seeds and 95 % band.",
    "weights": "Share of the weights that each task gets: mean over seeds and 95 % band.",
    "conflict": "Cosine between the gradients of two tasks over training: mean over seeds and 95 % band.",
}


def draw(comparison: Comparison, curves: pd.DataFrame) -> list[Plot]:
    """Draw the plots for which there are data, in the order of the page."""
    look = looks([*(entry.label for entry in comparison.entries), *comparison.fronts])
    with styled():
        figures = {
            "delta_m": delta_m(comparison, look),
            "delta_m_cost": delta_m_cost(comparison, look),
            "tasks": tasks(comparison, look),
            "pareto": pareto(comparison, look),
            "train_loss": over_time.losses(curves, "train_loss", look),
            "val_loss": over_time.losses(curves, "val_loss", look),
            "weights": over_time.weights(curves, look),
            "conflict": over_time.conflict(curves, look),
        }
        return [Plot(name, CAPTIONS[name], png(figure)) for name, figure in figures.items() if figure]
