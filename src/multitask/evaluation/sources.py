"""From what the user typed as `source` to the run folders and record files behind it."""

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
    """The sources found: run folders (each with `results.csv`, `run.json` or both) and other record files."""

    run_folders: tuple[Path, ...]
    record_files: tuple[Path, ...]


def find(source: str | Iterable[str]) -> Sources:
    """Resolve folders, files and globs, each thing once, in the order of its path.

    A folder stands for every run folder at or below it; one without any run stands for the CSV files that
    lie directly in it, as a folder of published tables does.

    Raises:
        ComparisonError: a source does not exist, or holds neither runs nor record files.
    """
    runs: dict[Path, Path] = {}
    files: dict[Path, Path] = {}
    for text in [source] if isinstance(source, str) else list(source):
        found_runs, found_files = _one(str(text))
        if not found_runs and not found_files:
            raise ComparisonError(
                f"source={text} leads to no run folder (with {RUN_RECORD} or {RUN_STATUS}) and no CSV file; "
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
    for match in (
        [path] if path.exists() else [Path(name) for name in sorted(glob.glob(text, recursive=True))]
    ):
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
            subdirectories.clear()  # what a run keeps inside (checkpoints, W&B files) is no other run
    return runs
