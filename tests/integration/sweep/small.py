"""Sweeps of small runs, and readers of their output."""

import csv
import json
import re
from pathlib import Path
from typing import Any

SMALL = (
    "data=npz",
    "task=[two_head/a,two_head/b]",
    "trunk=linear_relu",
    "logger=csv",
    "data.batch_size=16",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
)


def runs_of(sweep: Path) -> list[Path]:
    """Return a sweep's run folders."""
    return sorted(path.parent for path in sweep.glob("*/run.json"))


def records_of(sweep: Path) -> list[dict[str, Any]]:
    """Return the sweep's ``run.json`` files."""
    return [json.loads((run / "run.json").read_text()) for run in runs_of(sweep)]


def results_of(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's ``results.csv``."""
    with (run / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def table_of(printed: str) -> list[list[str]]:
    """Return the cells of the last printed table by row, without its header."""
    table = printed[printed.rindex("┡") :]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]


def progress_of(printed: str) -> list[str]:
    """Return the sweep's progress lines."""
    return re.findall(r"^sweep \S+: .* failed.*$", printed, re.MULTILINE)
