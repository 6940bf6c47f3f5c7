"""Tables of the results: one per case, with one column per method."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from multitask.benchmark.cells import Cell

MARKS = ("<!-- table: made by scripts/benchmark.py -->", "<!-- end of table -->")
_TORCHJD = ("torchjd", "torchjd_autojac", "torchjd_autogram")
_SHORT = {"weighted_sum": "sum", "torchjd_autojac": "autojac", "torchjd_autogram": "autogram"}
_TITLES = {
    "step": "One step, relative to the weighted sum's",
    "instance_wise": "Instance-wise, one row per example and task, relative to the weighted sum's step",
    "solver_few_conflicts": "The weights of a Gramian with few conflicts, relative to TorchJD's solver",
    "solver_many_conflicts": "The weights of a Gramian with many conflicts, relative to TorchJD's solver",
    "accumulate": "One step of four micro-batches, which make up the batch, relative to the weighted sum's",
    "compile": "One step with a compiled trunk, relative to the weighted sum's without",
    "text": "Text: one step of a transformer of 30 million parameters, whole and by LoRA",
    "framework": "A step of training, everything logged, relative to a hand-written loop that logs nothing",
    "scaling_tasks": "Scaling in the number of tasks",
    "scaling_batch": "Scaling in the batch size",
    "scaling_width": "Scaling in the width",
}


@dataclass(frozen=True)
class Grid:
    """A table of strings; all rows have the same columns."""

    title: str
    rows: list[dict[str, str]]


def grids(cells: Sequence[Cell]) -> Iterator[Grid]:
    """Yield one table per case, in the order of the cells."""
    for case, of_case in groupby(cells, lambda cell: _split_case(cell)[0]):
        yield _grid(case, list(of_case))


def _split_case(cell: Cell) -> tuple[str, str]:
    """Return the title's key, and the width of the network where the case names it."""
    scaling, _, width = cell.case.partition("scaling_width_")
    return (scaling, "") if not width else ("scaling_width", width)


def _grid(case: str, cells: Sequence[Cell]) -> Grid:
    methods = list(dict.fromkeys(cell.method for cell in cells))
    with_torchjd = any(method in _TORCHJD for method in methods) and len(methods) > 2
    rows = []
    for (_, trunk, m, batch), group in groupby(cells, lambda c: (c.case, c.trunk, c.tasks, c.batch)):
        by_method = {cell.method: cell for cell in group}
        first, ours = next(iter(by_method.values())), by_method["ours"]
        torchjd = min(
            (by_method[name] for name in _TORCHJD if name in by_method), key=lambda c: c.ratio, default=None
        )
        width = _split_case(first)[1]
        row = {"trunk": (f"{trunk}/{width}" if width else trunk) or "–"}
        row |= {"m": str(m), "batch": str(batch), "ms": f"{first.ms:.3g}"}
        for name in methods:
            row[_SHORT.get(name, name)] = f"{by_method[name].ratio:.2f}" if name in by_method else ""
        if with_torchjd:
            row["ours / torchjd"] = f"{ours.ratio / torchjd.ratio:.2f}" if torchjd else ""
        if case == "text":
            row["of (1 + 2 m) / 3"] = f"{ours.ratio / ((1 + 2 * m) / 3):.2f}"
        row["MiB"] = f"{ours.peak_mib:.3g}"
        if with_torchjd:
            row["of torchjd"] = f"{torchjd.peak_mib:.3g}" if torchjd else ""
        if case == "text":
            row["of sum"] = f"{first.peak_mib:.3g}"
        rows.append(row | {"error": f"{ours.max_error:.0e}"})
    return Grid(_TITLES[case], rows)


def show(grid: Grid, console: Console) -> None:
    """Print a table."""
    table = Table(title=grid.title, title_justify="left")
    for column in grid.rows[0]:
        table.add_column(column, justify="left" if column == "trunk" else "right")
    for row in grid.rows:
        table.add_row(*row.values())
    console.print(table)


def sentence(conditions: dict[str, Any]) -> str:
    """Return the conditions as one sentence."""
    return (
        "Measured on {date} at commit {commit:.12} on {processor} ({cores} cores, {threads} in use) with torch "
        "{torch} and torchjd {torchjd}."
    ).format(**conditions | {"commit": str(conditions["commit"])})


def markdown(cells: Sequence[Cell], conditions: Mapping[str, Any]) -> str:
    """Return all tables in Markdown, preceded by the conditions of the measurement."""
    parts = [sentence(dict(conditions))]
    for grid in grids(cells):
        header = list(grid.rows[0])
        lines = [header, ["---", *(["---:"] * (len(header) - 1))], *(row.values() for row in grid.rows)]
        parts.append(f"### {grid.title}\n\n" + "\n".join(map(_line, lines)))
    return "\n\n".join(parts) + "\n"


def _line(row: Iterable[str]) -> str:
    return f"| {' | '.join(row)} |"


def into_page(page: str, tables: str) -> str:
    """Return a page with the text between its marks replaced by the tables.

    Raises:
        ValueError: If the marks are missing.
    """
    before, first, rest = page.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise ValueError(f"it has no «{MARKS[0]}» with «{MARKS[1]}» after it")
    return f"{before}{first}\n\n{tables}\n{last}{after}"
