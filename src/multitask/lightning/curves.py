"""metrics.csv: what the loggers get, on disk after each row, and never lost by a later run."""

import csv
import os
import shutil
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

_FIRST = ("step", "epoch")


class MetricsCsv(Logger):
    """One row a call, the columns those of all rows so far.

    A row is handed to the operating system when it is logged, so that killing the process loses
    nothing. A new column rewrites the file beside itself and takes its place at once.

    Args:
        folder: Where metrics.csv lies. A file that is there already is continued.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns: list[str] = []
        self._expected: set[str] = set()
        self._begun = False
        self.rows = 0
        """How many rows the file has."""

    @property
    def name(self) -> str:
        """Lightning's name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning's version of the run: none."""
        return ""

    @property
    def save_dir(self) -> str:
        """The path of the file."""
        return str(self.path.parent)

    def expect(self, keys: Iterable[str]) -> None:
        """Give the file columns of these keys from its first row on: a figure without a value is an empty cell."""
        self._expected |= set(keys)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Leave the config to config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row."""
        if not self._begun and self.path.is_file():
            self._columns = _columns(self.path)
            self.rows = len(_rows(self.path))
        self._begun = True
        row = {"step": step, **{key: float(value) for key, value in metrics.items()}}
        if "epoch" in row:
            row["epoch"] = int(row["epoch"] or 0)
        new = [key for key in (*row, *self._expected) if key not in self._columns]
        if new:
            rest = sorted({*self._columns, *new} - set(_FIRST))
            self._columns = [*_FIRST, *rest]
            _write(self.path, self._columns, _rows(self.path) if self.path.is_file() else [])
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)
        self.rows += 1


def carry_over(source: Path, target: Path, count: int) -> None:
    """Begin a run's curves with the first rows of the run that it resumes.

    Where the target holds more, which a resumed run will write again, the whole file is kept beside it
    as ``metrics.before-<n>.csv``.

    Args:
        source: metrics.csv of the run that was stopped; nothing happens where there is none.
        target: metrics.csv of the resumed run.
        count: How many of its rows had been written when the checkpoint was saved.
    """
    if not source.is_file():
        return
    rows = _rows(source)
    if target.is_file():
        if source.samefile(target) and len(rows) <= count:
            return
        number = 1
        while (kept := target.with_name(f"metrics.before-{number}.csv")).exists():
            number += 1
        shutil.copyfile(target, kept)
    _write(target, _columns(source), rows[:count])


def _columns(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows, without a last one that was cut off."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _write(path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
