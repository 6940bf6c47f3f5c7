"""The table for a reader: one per case, a column per method."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from multitask.benchmark.cells import Cell
from multitask.benchmark.machine import sentence

_TORCHJD = ("torchjd", "torchjd_autojac", "torchjd_autogram")
MARKS = ("<!-- table: made by scripts/benchmark.py -->", "<!-- end of table -->")
_SHORT = {"weighted_sum": "sum", "torchjd_autojac": "autojac", "torchjd_autogram": "autogram"}
_TITLES = {
    "step": "One step, relative to the weighted sum's",
    "instance_wise": "Instance-wise, one row per example and task, relative to the weighted sum's step",
    "solver_few_conflicts": "The weights of a Gramian with few conflicts, relative to TorchJD's solver",
    "solver_many_conflicts": "The weights of a Gramian with many conflicts, relative to TorchJD's solver",
    "compile": "One step with a compiled trunk, relative to the weighted sum's without",
    "text": "Text: one step of a transformer of 30 million parameters, whole and by LoRA",
    "framework": "A step of training, everything logged, relative to a hand-written loop that logs nothing",
    "scaling_tasks": "Scaling in the number of tasks",
    "scaling_batch": "Scaling in the batch",
}


@dataclass(frozen=True)
class Grid:
    """A table of strings."""

    title: str
    header: list[str]
    rows: list[list[str]]


def grids(cells: Sequence[Cell]) -> Iterator[Grid]:
    """Yield a table a case, in the order of the cells."""
    for case, of_case in groupby(cells, lambda cell: _family(cell.case)):
        yield _grid(case, list(of_case))


def _family(case: str) -> str:
    return "scaling_width" if case.startswith("scaling_width") else case


def _grid(case: str, cells: Sequence[Cell]) -> Grid:
    methods = list(dict.fromkeys(cell.method for cell in cells))
    beside = any(method in _TORCHJD for method in methods) and len(methods) > 2
    header = ["trunk", "m", "batch", "ms", *(_SHORT.get(method, method) for method in methods)]
    against_best = ["of (1 + 2 m) / 3"] * (case == "text")
    header += ["ours / torchjd"] * beside + against_best
    header += ["MiB", *(["of torchjd"] * beside), *(["of sum"] * (case == "text")), "error"]
    rows = []
    for (name, trunk, m, batch), group in groupby(cells, lambda c: (c.case, c.trunk, c.tasks, c.batch)):
        found = {cell.method: cell for cell in group}
        ours, first = found["ours"], next(iter(found.values()))
        best = min((found[n] for n in _TORCHJD if n in found), key=lambda cell: cell.ratio, default=None)
        width = f"/{name.rpartition('_')[2]}" if case == "scaling_width" else ""
        row = [f"{trunk}{width}" or "–", str(m), str(batch), f"{first.ms:.3g}"]
        row += [f"{found[n].ratio:.2f}" if n in found else "" for n in methods]
        if beside:
            row.append("" if best is None else f"{ours.ratio / best.ratio:.2f}")
        if case == "text":
            row.append(f"{ours.ratio / ((1 + 2 * m) / 3):.2f}")
        row.append(f"{ours.peak_mib:.3g}")
        if beside:
            row.append("" if best is None else f"{best.peak_mib:.3g}")
        if case == "text":
            row.append(f"{first.peak_mib:.3g}")
        rows.append([*row, f"{ours.max_error:.0e}"])
    title = _TITLES.get(case, "Scaling in the width")
    return Grid(title, header, rows)


def show(grid: Grid, console: Console) -> None:
    """Print a table."""
    table = Table(title=grid.title, title_justify="left")
    for column in grid.header:
        table.add_column(column, justify="left" if column == "trunk" else "right")
    for row in grid.rows:
        table.add_row(*row)
    console.print(table)


def markdown(cells: Sequence[Cell], known: Mapping[str, Any]) -> str:
    """Return all tables under the sentence of where and when they were measured."""
    parts = [sentence(dict(known))]
    for grid in grids(cells):
        lines = [grid.header, ["---", *(["---:"] * (len(grid.header) - 1))], *grid.rows]
        parts.append(f"### {grid.title}\n\n" + "\n".join(map(_line, lines)))
    return "\n\n".join(parts) + "\n"


def _line(row: Iterable[str]) -> str:
    return f"| {' | '.join(row)} |"


def into_page(page: str, tables: str) -> str:
    """Return a page with the tables in place of what stands between its marks.

    Raises:
        ValueError: If the marks are missing.
    """
    before, first, rest = page.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise ValueError(f"it has no «{MARKS[0]}» with «{MARKS[1]}» after it")
    return f"{before}{first}\n\n{tables}\n{last}{after}"
