"""Resolves the key `source` to run folders and record files."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from multitask.evaluation.errors import ComparisonError

RUN_RECORD = "results.csv"
RUN_STATUS = "run.json"


@dataclass(frozen=True)
class Sources:
    """Run folders, each with `results.csv`, `run.json` or both, and other record files."""

    run_folders: tuple[Path, ...]
    record_files: tuple[Path, ...]


def find(source: str | Iterable[str]) -> Sources:
    """Resolve folders, files and globs, without duplicates, in the order of their paths.

    A folder stands for every run folder at or below it, or, if there is none, for the CSV files directly in it, such
    as published tables.
    """
    runs: dict[Path, Path] = {}
    files: dict[Path, Path] = {}
    for text in [source] if isinstance(source, str) else list(source):
        found_runs, found_files = _one(str(text))
        if not found_runs and not found_files:
            raise ComparisonError(
                f"source={text} matches no run folder (with {RUN_RECORD} or {RUN_STATUS}) and no CSV file; "
                f"give the folder of a sweep or a run, a record file, or a glob of them."
            )
        runs.update((path.resolve(), path) for path in found_runs)
        files.update((path.resolve(), path) for path in found_files)
    if not runs and not files:
        raise ComparisonError("source is empty: give the folder of a sweep or a run, a CSV file, or a glob.")
    return Sources(tuple(sorted(runs.values())), tuple(sorted(files.values())))


def _one(text: str) -> tuple[list[Path], list[Path]]:
    path = Path(text)
    if path.is_dir():
        runs = _runs_below(path)
        return runs, [] if runs else sorted(path.glob("*.csv"))
    runs, files = [], []
    matches = [text] if path.exists() else sorted(glob.glob(text, recursive=True))
    for match in map(Path, matches):
        if match.is_dir():
            runs += _runs_below(match)
        elif match.name == RUN_STATUS or (match.name == RUN_RECORD and (match.parent / RUN_STATUS).exists()):
            runs.append(match.parent)
        elif match.suffix == ".csv" and not (match.parent / RUN_STATUS).exists():
            files.append(match)
    return runs, files


def _runs_below(folder: Path) -> list[Path]:
    runs = []
    for directory, subdirectories, names in os.walk(folder):
        subdirectories.sort()
        if RUN_STATUS in names or RUN_RECORD in names:
            runs.append(Path(directory))
        if RUN_STATUS in names:
            subdirectories.clear()  # a run folder contains no other run
    return runs
