"""Two tasks against each other, with the fronts of weight sweeps and the area they dominate."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from multitask.evaluation.comparison import Comparison
from multitask.evaluation.plane import losses_of, on_front, plane, signs
from multitask.evaluation.plots.style import BASE, MUTED, Look, arms, legend, logarithmic, new_figure
from multitask.evaluation.wording import arrow


def pareto(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Plot two tasks against each other; a swept method's settings are small, and its front is joined."""
    drawn = plane(comparison)
    if drawn is None:
        return None
    figure, (axes,) = new_figure(3.0)
    front_members = {entry.label for front in comparison.fronts.values() for entry in front}
    named = [entry for entry in drawn.entries if entry.label not in front_members]
    for entry in drawn.entries:
        x, y = (entry.means[key] for key in drawn.keys)
        small = entry.label in front_members
        style = look[entry.method if small else entry.label]
        if not small:
            axes.errorbar(x.mean, y.mean, xerr=arms(x), yerr=arms(y), color=style.colour,
                          elinewidth=0.7, alpha=0.5, linestyle="none")  # fmt: skip
        axes.plot(x.mean, y.mean, color=style.colour, marker="." if small else style.marker, linestyle="none",
                  markersize=4 if small else 5.5, zorder=3)  # fmt: skip
    extra = []
    for method, front in comparison.fronts.items():
        members = [entry for entry in drawn.entries if entry in front]
        if not members:
            continue
        losses = losses_of(members, list(drawn.keys), drawn.higher)
        edge = np.unique(losses[on_front(losses)], axis=0) * signs(drawn.higher)
        # Between two settings only the worse corner is certain, hence steps instead of straight lines.
        axes.step(edge[:, 0], edge[:, 1], where="post", color=look[method].colour, linewidth=1)
        extra.append(Line2D([], [], color=look[method].colour, marker=".", linewidth=1,
                            label=f"{method}, {len(members)} settings"))  # fmt: skip
    if all(key in comparison.baseline_means for key in drawn.keys):
        left, right = (comparison.baseline_means[key].mean for key in drawn.keys)
        axes.axvline(left, color=BASE, linewidth=1, linestyle="--")
        axes.axhline(right, color=BASE, linewidth=1, linestyle="--")
        extra.append(Line2D([], [], color=MUTED, linestyle="--", linewidth=1, label="single task"))
    axes.set_xlabel(f"{drawn.keys[0]} {arrow(drawn.higher[0])}")
    axes.set_ylabel(f"{drawn.keys[1]} {arrow(drawn.higher[1])}")
    axes.locator_params(nbins=6)
    if comparison.metrics.loc[drawn.keys[0], "log"]:
        logarithmic(axes, "x", ticks=6)
    if comparison.metrics.loc[drawn.keys[1], "log"]:
        logarithmic(axes, "y", ticks=8)
    legend(figure, [entry.label for entry in named], look, lines=False, extra=tuple(extra))
    return figure
