"""The common style of all plots: one column of a paper wide, with colours for colour-blind readers."""

import io
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from multitask.evaluation.statistics import Interval

Dash = Literal["-", "--", ":", "-."]

WIDTH = 4.6  # inches: one column, and still legible on a phone
DPI = 250
INK, MUTED, GRID, BASE = "#22262b", "#6b7280", "#e3e5e8", "#9aa0a8"
# Okabe and Ito's colours without yellow, which is invisible on white, followed by Tol's muted ones.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255", "#117733",
    "#999933", "#44aa99", "#aa4499",
)  # fmt: skip
MARKERS = "osD^vP<X>ph*"
DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so that plots are the same on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a variant may contain a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Look:
    """The style of one method, the same in every plot of a comparison."""

    colour: str
    marker: str
    dash: Dash


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Return one look per label, in alphabetical order, so that it does not depend on the ranking."""
    ordered = sorted(set(labels))
    return {
        label: Look(
            COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i // len(COLOURS) % len(DASHES)]
        )
        for i, label in enumerate(ordered)
    }


def styled() -> AbstractContextManager[None]:
    """Return the context in which plots are drawn and saved, without the user's Matplotlib settings."""
    return mpl.rc_context({**dict(mpl.rcParamsDefault), **RC, "backend": mpl.rcParams["backend"]})


def new_figure(
    height: float, rows: int = 1, columns: int = 1, *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `rows` × `columns` axes, without a window system. Call it inside `styled`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(axes.flat)


def legend(
    figure: Figure, labels: Iterable[str], look: dict[str, Look], *, lines: bool, extra: tuple = ()
) -> None:
    """Add one legend below the axes, in as many columns as fit."""
    names = list(labels)
    handles = [
        Line2D(
            [], [], color=look[name].colour, label=name,
            linestyle=look[name].dash if lines else "none", marker="none" if lines else look[name].marker,
        )
        for name in names
    ] + list(extra)  # fmt: skip
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(4, int(WIDTH / (0.06 * longest + 0.45))))
    # The legend adds to the figure's height, so that the axes keep theirs.
    rows = math.ceil(len(handles) / columns)
    figure.set_size_inches(WIDTH, figure.get_size_inches()[1] + 0.16 * rows + 0.1)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, handlelength=1.8, columnspacing=1.2
    )


def arms(interval: Interval) -> list[list[float]] | None:
    """Return Matplotlib's error bar of an interval, below and above its mean; None if there is no interval."""
    if math.isnan(interval.half):
        return None
    return [[interval.mean - interval.low], [interval.high - interval.mean]]


def logarithmic(axes: Axes, which: Literal["x", "y"], ticks: int) -> None:
    """Set an axis to a logarithmic scale with plain numbers at about ``ticks`` ticks."""
    getattr(axes, f"set_{which}scale")("log")
    axis: Axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if 3 * math.log10(high / low) <= ticks + 1 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG with reproducible bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
