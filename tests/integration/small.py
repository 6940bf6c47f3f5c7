"""Runs of ``experiment=small``, and readers of the files of a run."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.integration.script_runner import Ran, Scripts

CONFIGS = Path(__file__).parent / "configs"


class Small:
    """Runs of ``experiment=small``."""

    def __init__(self, scripts: Scripts, arrays: Path) -> None:
        self.scripts = scripts
        self.arrays = arrays

    @property
    def stopped(self) -> Path:
        """The folder of the stopped run."""
        return self.scripts.logs / "stopped"

    def any(self, *arguments: str, **keywords: Any) -> Ran:
        """Run and return the result, whatever the exit code."""
        fixed = [f"--config-dir={CONFIGS}", "experiment=small", f"data.path={self.arrays}"]
        return self.scripts.run(*fixed, *arguments, **keywords)

    def run(self, *arguments: str, **keywords: Any) -> Ran:
        """Run and require success."""
        ran = self.any(*arguments, **keywords)
        assert ran.code == 0, ran.err
        return ran

    def stop(self, *arguments: str) -> Ran:
        """Run until a signal stops it."""
        ran = self.any(*arguments, f"hydra.run.dir={self.stopped}")
        assert ran.code in (143, 130, -9), ran.err
        return ran


def stop(hook: str, count: int, *signals: str) -> list[str]:
    """Return the overrides that send signals at the ``count``-th call of a hook."""
    return [
        f"callbacks.stop_at.hook={hook}",
        f"callbacks.stop_at.count={count}",
        f"callbacks.stop_at.signals=[{','.join(signals)}]",
    ]


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    """Load a checkpoint of a run."""
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested containers with their keys."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{key}.{i}")
    else:
        yield key, value


def rows(path: Path, leave_out: str = r"cost/|.*/second") -> list[dict[str, str]]:
    """Return the rows of a CSV file without some columns, by default the measured times."""
    with path.open() as file:
        return [{k: v for k, v in row.items() if not re.match(leave_out, k)} for row in csv.DictReader(file)]


def metrics(folder: Path) -> dict[tuple[str, str, str], float]:
    """Return the values of a run's ``results.csv`` by split, task and metric."""
    return {(r["split"], r["task"], r["metric"]): float(r["value"]) for r in rows(folder / "results.csv")}


def metrics_on_test(folder: Path) -> dict[tuple[str, str], float]:
    """Return the values of the test split by task and metric."""
    return {
        (task, metric): value for (split, task, metric), value in metrics(folder).items() if split == "test"
    }
