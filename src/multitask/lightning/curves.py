"""The logger of metrics.csv, which loses no row when a run is killed or resumed."""

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
    """Logger that writes one row per call to metrics.csv in a folder, appending to an existing file.

    Each row is passed to the operating system immediately, so that killing the process loses nothing. A new
    column rewrites the file atomically.
    """

    name = "csv"
    version = ""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns: list[str] = []
        self._expected: set[str] = set()
        self._begun = False
        self.rows = 0
        """Number of rows in the file."""

    @property
    def save_dir(self) -> str:
        """Folder of the file."""
        return str(self.path.parent)

    def expect(self, keys: Iterable[str]) -> None:
        """Add columns for these keys from the first row on; missing values are empty cells."""
        self._expected |= set(keys)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the config is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row."""
        if not self._begun and self.path.is_file():
            self._columns, rows = _read(self.path)
            self.rows = len(rows)
        self._begun = True
        row = {"step": step, **{key: float(value) for key, value in metrics.items()}}
        if "epoch" in row:
            row["epoch"] = int(row["epoch"] or 0)
        new = [key for key in (*row, *self._expected) if key not in self._columns]
        if new:
            rest = sorted({*self._columns, *new} - set(_FIRST))
            self._columns = [*_FIRST, *rest]
            _write(self.path, self._columns, _read(self.path)[1] if self.path.is_file() else [])
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)
        self.rows += 1


def carry_over(source: Path, target: Path, count: int) -> None:
    """Start the metrics.csv of a resumed run, ``target``, with the first ``count`` rows of ``source``, if it exists.

    If the target has other rows, it is first copied to ``metrics.before-<n>.csv``.
    """
    if not source.is_file():
        return
    columns, rows = _read(source)
    if target.is_file():
        if source.samefile(target) and len(rows) <= count:
            return
        number = 1
        while (kept := target.with_name(f"metrics.before-{number}.csv")).exists():
            number += 1
        shutil.copyfile(target, kept)
    _write(target, columns, rows[:count])


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns, and the rows except a truncated last one."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or []), [row for row in reader if None not in row.values()]


def _write(path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
