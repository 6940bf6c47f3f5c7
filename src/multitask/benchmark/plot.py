"""Plot of the scaling cases."""

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, NullFormatter

from multitask.benchmark.cells import Cell
from multitask.evaluation.plots.style import legend, looks, new_figure, png, styled


def scaling(cells: Sequence[Cell]) -> bytes | None:
    """Return a PNG of milliseconds per step over tasks, width and batch size; ``None`` without such cells."""
    panels: dict[str, list[tuple[int, Cell]]] = {}
    for name in ("tasks", "width", "batch"):
        for cell in cells:
            if cell.case.startswith(f"scaling_{name}"):
                x = int(cell.case.rpartition("_")[2]) if name == "width" else getattr(cell, name)
                panels.setdefault(name, []).append((x, cell))
    if not panels:
        return None
    methods = list(dict.fromkeys(cell.method for points in panels.values() for _, cell in points))
    look = looks(methods)
    with styled():
        figure, axes = new_figure(2.1, 1, len(panels), sharey=True)
        for ax, (name, points) in zip(axes, panels.items(), strict=True):
            for method in methods:
                line = sorted((x, cell.ms) for x, cell in points if cell.method == method)
                values, ms = zip(*line, strict=True)
                ax.plot(
                    values,
                    ms,
                    color=look[method].colour,
                    linestyle=look[method].dash,
                    marker=look[method].marker,
                )
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
            ax.set_xlabel(name)
        axes[0].set_ylabel("milliseconds per step")
        legend(figure, methods, look, lines=True)
        return png(figure)
