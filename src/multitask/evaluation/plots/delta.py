"""Δm by method, Δm against cost, and the gain over the baseline task by task."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from multitask.evaluation.comparison import Comparison
from multitask.evaluation.deltas import DELTA_M
from multitask.evaluation.entries import Entry
from multitask.evaluation.plots.style import BASE, INK, MUTED, Look, arms, legend, logarithmic, new_figure
from multitask.evaluation.statistics import Interval

COST_TICKS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
LONG_NAME = 20  # characters that fit above one panel
MOST_PANELS = 12  # more metrics than this are drawn as a heat map


def delta_m(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Plot Δm with its interval, best on top; hollow diamonds are published values."""
    measured = {entry.label: entry.delta_m for entry in comparison.entries if entry.delta_m}
    table = comparison.quoted[comparison.quoted["metric"] == DELTA_M]
    quoted = dict(zip(table["label"], table["value"], strict=True))
    names = sorted(set(measured) | set(quoted), key=lambda name: (_position(name, measured, quoted), name))
    if not names:
        return None
    figure, (axes,) = new_figure(0.55 + 0.2 * len(names))
    for place, name in enumerate(names):
        if name in measured:
            _dot(axes, measured[name], place, look[name])
        if name in quoted:
            axes.plot(quoted[name], place, "D", markerfacecolor="white", markeredgecolor=INK, markersize=4)
    axes.axvline(0, color=BASE, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("Δm, % against single-task training  (← better)")
    if quoted:
        kinds = [Line2D([], [], linestyle="none", marker="D", markerfacecolor="white", markeredgecolor=INK,
                        label="published by others, not measured here")]  # fmt: skip
        legend(figure, [], look, lines=False, extra=tuple(kinds))
    return figure


def _position(name: str, measured: dict[str, Interval], quoted: dict[str, float]) -> float:
    return measured[name].mean if name in measured else quoted[name]


def _dot(axes, interval: Interval, place: float, look: Look) -> None:  # type: ignore[no-untyped-def]
    axes.errorbar(interval.mean, place, xerr=arms(interval), color=look.colour, marker=look.marker,
                  elinewidth=1.1, capsize=2.2, capthick=1.1, linestyle="none")  # fmt: skip


def delta_m_cost(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Plot Δm against seconds per step relative to the reference."""
    known = [entry for entry in comparison.entries if entry.delta_m and not math.isnan(entry.cost.step_ratio)]
    if not known:
        return None
    figure, (axes,) = new_figure(2.6)
    for entry in known:
        interval, style = entry.delta_m, look[entry.label]
        assert interval is not None
        axes.errorbar(entry.cost.step_ratio, interval.mean, yerr=arms(interval), color=style.colour, linestyle="none",
                      marker=style.marker, markersize=5.5, elinewidth=0.9, capsize=2)  # fmt: skip
    axes.axhline(0, color=BASE, linewidth=1)
    axes.set_xscale("log", base=2)
    ratios = [entry.cost.step_ratio for entry in known]
    least, most = min(*ratios, 1) / 1.1, max(*ratios, 1.5) * 1.1
    axes.set_xlim(least, most)
    ticks = [tick for tick in COST_TICKS if least <= tick <= most]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"seconds per step, relative to {comparison.settings.reference}")
    axes.set_ylabel("Δm, %  (lower is better)")
    legend(figure, [entry.label for entry in known], look, lines=False)
    return figure


def tasks(comparison: Comparison, look: dict[str, Look]) -> Figure | None:
    """Plot every metric's gain over the baseline as bars; without a baseline, or on a log axis, the metric itself."""
    directed = comparison.metrics[comparison.metrics["higher"].notna()]
    entries = comparison.entries
    if not entries or directed.empty:
        return None
    gains = all(entry.deltas for entry in entries)
    log = directed["log"]
    if len(directed) > MOST_PANELS:
        return _map(entries, list(directed.index)) if gains else None
    columns = min(2, len(directed))
    rows = math.ceil(len(directed) / columns)
    figure, panels = new_figure(rows * (0.68 + 0.19 * len(entries)) + 0.25, rows, columns, sharey=True)
    for axes, key in zip(panels, directed.index, strict=False):
        higher = bool(directed.loc[key, "higher"])
        for place, entry in enumerate(entries):
            style = look[entry.label]
            if entry.deltas and not log[key]:
                interval = entry.deltas.gains[key]
                axes.barh(place, interval.mean, height=0.68, color=style.colour, alpha=0.85, xerr=arms(interval),
                          error_kw={"ecolor": INK, "elinewidth": 0.8, "capsize": 1.6})  # fmt: skip
            elif not math.isnan(entry.means[key].mean):
                _dot(axes, entry.means[key], place, style)
        if gains:
            at = comparison.baseline_means[key].mean if log[key] else 0
            axes.axvline(at, color=BASE, linewidth=1)
        name = key if len(key) <= LONG_NAME else key.replace("/", "/\n")
        axes.set_title(name if gains and not log[key] else f"{name} {'↑' if higher else '↓'}")
        axes.grid(axis="y", visible=False)
        axes.set_yticks(range(len(entries)), [entry.label for entry in entries])
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
        if log[key]:
            logarithmic(axes, "x", ticks=5)
    for axes in panels[len(directed) :]:
        axes.set_axis_off()
    if gains and not log.all():
        figure.supxlabel("gain over single-task training, %  (better →)", fontsize=8)
    return figure


def _map(entries: list[Entry], keys: list[str]) -> Figure:
    gains = np.array([[entry.deltas.gains[key].mean for entry in entries] for key in keys])  # type: ignore[union-attr]
    figure, (axes,) = new_figure(1.1 + 0.15 * len(keys))
    limit = float(np.abs(gains).max()) or 1.0
    image = axes.imshow(gains, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(entries)), [entry.label for entry in entries], rotation=40, ha="right")
    axes.set_yticks(range(len(keys)), keys, fontsize=6.5)
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.6)
    bar.set_label("gain over single-task training, %", color=MUTED)
    return figure
