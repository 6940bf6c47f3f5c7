"""Reads records into the two tables of a comparison: one row per metric, one row per run."""

import csv
import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.names import COMBINED, conflict
from multitask.evaluation.sources import RUN_RECORD, RUN_STATUS, Sources

COLUMNS = ("method", "seed", "task", "metric", "split", "value", "higher_is_better")
OPTIONAL = ("experiment", "sweep", "run", "epoch", "selection", "config_digest", "variant", "source")
NOT_A_TASK = ("", COMBINED)  # results of a whole run, for example the weighted sum of its losses
RECORDED = "recorded"  # the status of rows from a table, which has no run folder
FINISHED = ("completed", RECORDED)

RESULT_COLUMNS = ["run", "task", "metric", "split", "value", "higher", "selection", "digest"]
MEASURED = ("step_seconds", "peak_memory_mib", "parameters")
# The columns of `Records.runs`, with the values of a run of which nothing is known.
UNKNOWN: dict[str, Any] = (
    dict.fromkeys(("experiment", "method", "variant", "seed", "recipe", "selection"), "")
    | {"status": RECORDED, "error": "", "name": "", "sweep": "", "source": ""}
    | dict.fromkeys(MEASURED, math.nan)
    | {"versions": "{}", "commit": "", "metrics_file": "", "marks": ()}
)


@dataclass(frozen=True)
class Records:
    """The records of the sources.

    `results`: one row per metric, with `run` pointing into `runs`, `higher` True, False or None, and `digest` of
    the recipe of its task alone, which a joint run and its single-task baseline share. `runs`: one row per run,
    indexed by `run`, with the digest of the whole `recipe` and, as `marks`, the multiplicative metrics of its config.
    Unknown text is "", an unknown number NaN.
    """

    results: pd.DataFrame
    runs: pd.DataFrame


def read(sources: Sources) -> Records:
    """Read every run folder and record file."""
    reader = _Reader()
    for folder in sources.run_folders:
        reader.add_run_folder(folder)
    for file in sources.record_files:
        reader.add_table(file)
    return reader.records()


class _Reader:
    def __init__(self) -> None:
        self.results: list[tuple[Any, ...]] = []
        self.runs: list[dict[str, Any]] = []

    def records(self) -> Records:
        results = pd.DataFrame(self.results, columns=RESULT_COLUMNS).astype({"run": int, "value": float})
        runs = pd.DataFrame(self.runs, columns=list(UNKNOWN)).astype(dict.fromkeys(MEASURED, float))
        runs.index.name = "run"
        runs["recipe"] = _recipes(results, runs)
        return Records(results, runs)

    def add_run_folder(self, folder: Path) -> None:
        status = _status(folder / RUN_STATUS)
        rows = _rows(folder / RUN_RECORD) if (folder / RUN_RECORD).exists() else []
        first = rows[0] if rows else {}

        def known(column: str) -> str:
            return first.get(column) or _text(status.get(column))

        metrics_file = folder / "metrics.csv"
        run = {
            "experiment": known("experiment") or "unnamed",
            "method": known("method") or "unknown",
            **{column: known(column) for column in ("variant", "selection", "sweep")},
            "seed": known("seed").removesuffix(".0"),
            "recipe": _text(status.get("config_digest")),
            "status": _text(status.get("status")) or RECORDED,
            "error": _text(status.get("error")),
            "name": str(folder),
            "source": first.get("source", ""),
            **{column: _number(status.get(column)) for column in MEASURED},
            "versions": json.dumps(status.get("versions", {}), sort_keys=True),
            "commit": _text(status.get("git_commit")),
            "metrics_file": str(metrics_file) if metrics_file.exists() else "",
            "marks": tuple(status.get("multiplicative", ())),
        }
        self._add(run, rows, folder / RUN_RECORD, own=True)

    def add_table(self, file: Path) -> None:
        """Add a table of any origin.

        The rows of one method, variant, seed and name are one run; a repeated metric starts another run.
        """
        groups: dict[tuple[Any, ...], list[dict[str, str]]] = {}
        times: Counter[tuple[Any, ...]] = Counter()
        for row in _rows(file):
            key = tuple(
                row.get(name, "")
                for name in ("experiment", "method", "variant", "seed", "sweep", "run", "source")
            )
            what = (*key, *_name(row))
            times[what] += 1
            groups.setdefault((*key, times[what]), []).append(row)
        for (experiment, method, variant, seed, sweep, name, source, _), rows in groups.items():
            run = UNKNOWN | {
                "experiment": experiment or file.stem,
                "method": method,
                "variant": variant,
                "seed": seed.removesuffix(".0"),
                "selection": rows[0].get("selection", ""),
                "name": name or f"{file} ({method}{', seed ' + seed if seed else ''})",
                "sweep": sweep,
                "source": source,
            }
            self._add(run, rows, file, own=False)

    def _add(self, run: dict[str, Any], rows: list[dict[str, str]], file: Path, own: bool) -> None:
        number = len(self.runs)
        self.runs.append(run)
        if wrong := conflict(rows, own):
            raise ComparisonError(f"source: {file} has {wrong}, or remove its rows.")
        for (task, metric, split, _), count in Counter(map(_name, rows)).items():
            if count > 1:
                raise ComparisonError(
                    f"source: {file} has two values of {task}/{metric} on the split {split}; remove one."
                )
        for row in rows:
            value, higher = _value(row["value"], file), _direction(row["higher_is_better"], file)
            selection = row.get("selection") or run["selection"]
            digest = row.get("config_digest") or run["recipe"]
            self.results.append(
                (number, row["task"], row["metric"], row["split"], value, higher, selection, digest)
            )


def _name(row: dict[str, str]) -> tuple[str, str, str, str]:
    """Return what distinguishes a value from the others of its run."""
    return row["task"], row["metric"], row["split"], row.get("selection", "")


def _recipes(results: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
    """Return the digest of every run's recipe: that of run.json, or one of its tasks' digests.

    Runs whose tasks have equal digests have the same recipe, and the same digest of it.
    """
    results = results[~results["task"].isin(NOT_A_TASK)]
    pairs = results["task"] + "=" + results["digest"]
    by_tasks = pairs.groupby(results["run"]).agg(lambda names: "\n".join(sorted(set(names))))
    named = runs["recipe"][runs["recipe"] != ""]
    names = {tasks: named[run] for run, tasks in by_tasks.items() if run in named.index}
    digests = results.groupby("run")["digest"].agg(lambda each: sorted(set(each)))
    recipes = runs["recipe"].copy()
    for run, tasks in by_tasks.items():
        one = digests[run][0] if len(digests[run]) == 1 else hashlib.sha256(tasks.encode()).hexdigest()[:12]
        recipes[run] = names.get(tasks, one)
    return recipes


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        # Spreadsheets write UTF-8 with a byte order mark.
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ComparisonError(
            f"source: {file} is not a CSV file in UTF-8 ({error}); save it as one."
        ) from None
    if missing := [column for column in COLUMNS if column not in columns]:
        raise ComparisonError(
            f"source: {file} is not a results record, it lacks the column {', '.join(missing)}; "
            f"a record has {','.join(COLUMNS)}."
        )
    wanted = [column for column in (*COLUMNS, *OPTIONAL) if column in columns]
    return [{column: (row[column] or "").strip() for column in wanted} for row in rows]


def _status(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        status = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return {"status": "unreadable", "error": f"run.json is not JSON: {error}"}
    if not isinstance(status, dict):
        return {"status": "unreadable", "error": "run.json is not a JSON object"}
    return status


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _value(text: str, file: Path) -> float:
    try:
        return float(text or math.nan)
    except ValueError:
        raise ComparisonError(
            f"source: {file} has the value {text!r}, which is not a number; correct it."
        ) from None


_DIRECTIONS = {
    **dict.fromkeys(("", "none")),
    **dict.fromkeys(("true", "1", "1.0"), True),
    **dict.fromkeys(("false", "0", "0.0"), False),
}


def _direction(text: str, file: Path) -> bool | None:
    if text.lower() not in _DIRECTIONS:
        raise ComparisonError(
            f"source: {file} has higher_is_better={text!r}; write True or False, or leave it empty if unknown."
        )
    return _DIRECTIONS[text.lower()]
