"""The status of a sweep's job, which any process can read from the job's folder."""

import csv
import json
from pathlib import Path
from typing import Any

from multitask.sweep.claim import NAME as CLAIM
from multitask.sweep.claim import holder

COMPLETED = "completed"
FAILED = "failed"
INTERRUPTED = "interrupted"
RUNNING = "running"
WAITING = "not started"


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a run's ``run.json``, empty if it does not exist."""
    path = folder / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a ``results.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def status_of(folder: Path) -> str:
    """Return a run's status; a run whose process has died counts as interrupted."""
    status = str(read_record(folder).get("status", WAITING))
    if status == COMPLETED:
        return status
    if holder(folder) is not None:
        return RUNNING
    if status == RUNNING or (status == WAITING and (folder / CLAIM).is_file()):
        return INTERRUPTED
    return status
