"""Single-task baselines by experiment: the results that other methods are compared with."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from multitask.errors import ConfigError
from multitask.evaluation.names import COMBINED, SINGLE_TASK, conflict
from multitask.run.record import COLUMNS, write_results
from multitask.sweep.state import COMPLETED, read_record, read_rows

Row = Mapping[str, str]
# Columns that identify a value; a new measurement replaces the old one.
_IDENTITY = ("task", "metric", "split", "seed", "selection", "variant", "config_digest")


def record(sources: Iterable[Path], output: Path) -> dict[Path, int]:
    """Add the results of single-task runs to ``<experiment>.csv`` in a folder; new measurements replace old ones.

    Rows of other recipes are kept, each with its own digest. The number of rows of these runs is returned by file.
    """
    by_experiment: dict[str, list[Row]] = {}
    for row in _rows(sources):
        by_experiment.setdefault(row["experiment"], []).append(row)
    if not by_experiment:
        raise ConfigError(
            "source has no run of a single task; make some with "
            "python scripts/train.py -m experiment=<name> baseline=single_task seed=0,1,2."
        )
    output.mkdir(parents=True, exist_ok=True)
    written = {}
    for experiment, rows in sorted(by_experiment.items()):
        path = output / f"{experiment}.csv"
        known = {_identity(row): row for row in (*(read_rows(path) if path.is_file() else []), *rows)}
        # Sorted, so that the diff of a file in git shows only changed values.
        write_results(path, [{key: row.get(key, "") for key in COLUMNS} for _, row in sorted(known.items())])
        written[path] = len(rows)
    return written


def _rows(sources: Iterable[Path]) -> list[Row]:
    rows: list[Row] = []
    for source in sources:
        folders = sorted(path.parent for path in source.glob("**/run.json"))
        if not folders:
            raise ConfigError(f"source={source} contains no run; give the folder of a sweep.")
        for folder in folders:
            known = read_record(folder)
            if known.get("method") != SINGLE_TASK:
                continue
            if known.get("status") != COMPLETED:
                raise ConfigError(
                    f"source={source}: {folder.name} has the status {known.get('status')}; finish the sweep first with "
                    f"sweep={folder.parent.name}."
                )
            rows += _of_tasks(folder / "results.csv")
    return rows


def _of_tasks(path: Path) -> list[Row]:
    """Return a run's rows, except those of the combined loss."""
    rows = read_rows(path)
    if wrong := conflict(rows, own=True):
        raise ConfigError(f"source: {path} has {wrong}.")
    return [row for row in rows if row["task"] != COMBINED]


def _identity(row: Row) -> tuple[str | int, ...]:
    return tuple(int(row[key]) if key == "seed" else row.get(key, "") for key in _IDENTITY)
