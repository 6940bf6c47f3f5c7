"""Baseline files: single-task metrics per experiment and recipe."""

import csv
import json
from pathlib import Path

import pytest

from multitask.errors import ConfigError
from multitask.run.record import write_results
from multitask.sweep.baseline import record


def run(folder: Path, seed: int, value: float, digest: str = "d1", **facts: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = {"method": "single_task", "status": "completed", **facts}
    (folder / "run.json").write_text(json.dumps(known))
    row = {"method": known["method"], "seed": seed, "metric": "loss", "split": "test", "value": repr(value)}
    row |= {"experiment": "small", "config_digest": digest}
    write_results(folder / "results.csv", [{**row, "task": "a"}, {**row, "task": "combined"}])


def values(path: Path) -> list[tuple[str, str, str, str]]:
    with path.open() as file:
        return [(r["task"], r["seed"], r["value"], r["config_digest"]) for r in csv.DictReader(file)]


def test_repeated_runs_replace_old_values(tmp_path: Path) -> None:
    for seed in (10, 9):
        run(tmp_path / "first" / str(seed), seed, 1.0 + seed)
    run(tmp_path / "first" / "other", 0, 5.0, method="upgrad")
    path = tmp_path / "baselines" / "small.csv"
    assert record([tmp_path / "first"], path.parent) == {path: 2}
    assert values(path) == [("a", "9", "10.0", "d1"), ("a", "10", "11.0", "d1")]
    run(tmp_path / "second" / "x", 9, 0.5)
    run(tmp_path / "second" / "y", 9, 0.25, digest="d2")
    assert record([tmp_path / "second"], path.parent) == {path: 2}
    assert values(path) == [("a", "9", "0.5", "d1"), ("a", "9", "0.25", "d2"), ("a", "10", "11.0", "d1")]
    before = path.read_text()
    record([tmp_path / "second"], path.parent)
    assert path.read_text() == before


def test_runs_that_are_not_a_baseline_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains no run"):
        record([tmp_path], tmp_path / "baselines")
    run(tmp_path / "s" / "x", 0, 1.0, method="upgrad")
    with pytest.raises(ConfigError, match="has no run of a single task"):
        record([tmp_path], tmp_path / "baselines")
    run(tmp_path / "s" / "y", 0, 1.0, status="interrupted")
    with pytest.raises(
        ConfigError, match="y has the status interrupted; finish the sweep first with sweep=s"
    ):
        record([tmp_path], tmp_path / "baselines")
    assert not (tmp_path / "baselines").exists()
