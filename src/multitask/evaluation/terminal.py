"""Prints the comparison as tables in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from multitask.evaluation import wording
from multitask.evaluation.comparison import Comparison
from multitask.evaluation.entries import Entry
from multitask.evaluation.plane import plane

MOST_METRICS = 8
MOST_PAIRS = 20
INTERVAL = "95 % interval"


def show(comparisons: list[Comparison], console: Console) -> None:
    """Print what fits a screen; the rest is in the CSV files and on the page."""
    for comparison in comparisons:
        title = comparison.experiment + (" (published by others)" if comparison.published else "")
        console.print(Text(f"\n{title}", style="bold"))
        for sentence in wording.findings(comparison):
            console.print(Text(sentence))
        if comparison.rows:
            if comparison.entries:
                console.print(_results(comparison, "Methods", comparison.entries))
            for method, front in comparison.fronts.items():
                of_front = f"Settings of {method}, which form a front: neither ranked nor tested"
                console.print(_results(comparison, of_front, front, "setting"))
            if comparison.entries:
                console.print(_metrics(comparison))
            for target, rows in wording.times(comparison):
                until = f"Until validation reaches {target}, median over runs"
                table = _table(until, "method", "steps", "seconds", "reached by")
                for row in rows:
                    table.add_row(*map(Text, row))
                console.print(table)
            console.print(_protocol(comparison))
        if volumes := wording.hypervolumes(plane(comparison)):
            console.print(Text(volumes))
        _show_pairs(comparison, console)
        if len(comparison.quoted):
            console.print(_quoted(comparison))
        for caution in comparison.cautions:
            console.print(Text(f"! {caution}", style="yellow"))
        if len(comparison.set_aside):
            console.print(_set_aside(comparison))


def _table(title: str, first: str, *numbers: str, texts: Sequence[str] = ()) -> Table:
    """Return a table whose title and headers are plain text, not markup."""
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column(Text(first), no_wrap=True)
    for column in numbers:
        table.add_column(Text(column), justify="right", no_wrap=column == INTERVAL)
    for column in texts:
        table.add_column(Text(column), overflow="fold" if column == "run" else "ellipsis")
    return table


def _results(comparison: Comparison, title: str, entries: list[Entry], first: str = "method") -> Table:
    macro = list(dict.fromkeys(name for entry in entries for name in entry.macro))
    decimals = wording.column_digits(comparison)
    title += f"; split {comparison.settings.split}, mean ± 95 % interval over seeds"
    table = _table(title, first, "Δm % ↓", "Δp % ↑", "mean rank ↓", *(f"mean {name}" for name in macro))
    for entry in entries:
        table.add_row(
            Text(entry.label if first == "method" else entry.variant),
            wording.percent(entry.delta_m),
            wording.percent(entry.delta_p),
            _rank(entry),
            *(wording.metric(entry.macro.get(name), decimals[f"mean/{name}"]) for name in macro),
        )
    return table


def _protocol(comparison: Comparison) -> Table:
    title = f"Cost, relative to {comparison.settings.reference}, and protocol"
    table = _table(title, "method", "step", "memory", "seeds", "trials", texts=["selected by"])
    for entry in comparison.rows:
        table.add_row(
            Text(entry.label),
            wording.ratio(entry.cost.step_ratio),
            wording.ratio(entry.cost.memory_ratio),
            str(entry.seeds) if entry.seeds == entry.attempted else f"{entry.seeds} of {entry.attempted}",
            str(entry.trials),
            Text(entry.selection or "not stated", style="bold red" if entry.on_test else ""),
        )
    return table


def _rank(entry: Entry) -> str:
    if entry.rank is None:
        return wording.NOTHING
    rank, low, high = (wording.number(value) for value in entry.rank)
    return f"{rank} [{low}–{high}]"


def _metrics(comparison: Comparison) -> Table:
    keys = list(comparison.metrics.index[:MOST_METRICS])
    more = len(comparison.metrics) - len(keys)
    decimals = wording.column_digits(comparison)
    heads = [f"{key} {wording.arrow(comparison.metrics.loc[key, 'higher'])}".strip() for key in keys]
    table = _table(f"Metrics{f' ({more} more in means.csv)' if more else ''}", "method", *heads)
    if comparison.baseline_means:
        table.add_row(
            "single_task",
            *(wording.metric(comparison.baseline_means.get(key), decimals[key]) for key in keys),
            style="dim",
        )
    for entry in comparison.entries:
        table.add_row(Text(entry.label), *(wording.metric(entry.means[key], decimals[key]) for key in keys))
    return table


def _show_pairs(comparison: Comparison, console: Console) -> None:
    rows = comparison.headline_pairs
    if rows.empty:
        return
    best = comparison.entries[0].label
    title = f"Pairs on {wording.metric_name(comparison.headline)}, by seed, Holm-corrected"
    if len(rows) > MOST_PAIRS:
        rows = rows[(rows["a"] == best) | (rows["b"] == best)]
        title += f"; those of {best}, the rest is in pairs.csv"
    kind = "ratio" if rows["scale"].iloc[0] == "log" else "difference"
    title += f". Needed: seeds for {wording.sought(rows.iloc[0])}"
    table = _table(title, "pair", kind, INTERVAL, "p", "needed", texts=["verdict"])
    for _, row in rows.iterrows():
        cells = wording.pair_cells(row)
        style = "" if cells["separable"] else "dim"
        numbers = [cells[key] for key in ("difference", "interval", "p", "needed")]
        table.add_row(Text(cells["names"]), *numbers, Text(cells["outcome"], style=style))
    console.print(table)


def _quoted(comparison: Comparison) -> Table:
    title = "Published by others, not measured here and not part of any statistic above"
    table = _table(title, "method", "Δ %", texts=["metric", "source"])
    for row in comparison.quoted.itertuples():
        name = wording.metric_name(row.metric)
        table.add_row(Text(row.label), wording.number(row.value), name, Text(row.source))
    return table


def _set_aside(comparison: Comparison) -> Table:
    count = len(comparison.set_aside)
    title = f"Not averaged: {count} run{'s' if count > 1 else ''}"
    table = _table(title, "method", "seed", texts=["reason", "run"])
    for row in comparison.set_aside.itertuples():
        table.add_row(Text(row.method), Text(row.seed), Text(row.reason), Text(row.run))
    return table
