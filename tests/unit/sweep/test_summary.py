"""The best setting of a method has the best mean of the selection metric over all seeds."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multitask.sweep.summary import best_settings, summarize


def job(folder: Path, seed: int, value: float | None, *overrides: str, **record: Any) -> Any:
    folder = folder / f"{seed}-{'-'.join(overrides).replace('/', '_')}"
    folder.mkdir()
    facts = {"status": "completed", "selection": "min val/loss", "selected_value": value, **record}
    (folder / "run.json").write_text(json.dumps(facts))
    method = next((o.partition("=")[2] for o in overrides if o.startswith("weighting=")), "uw")
    return SimpleNamespace(folder=folder, seed=seed, method=method, overrides=[*overrides, f"seed={seed}"])


def sweep(folder: Path, jobs: Sequence[Any]) -> list[str]:
    return best_settings(
        summarize([job(folder, *each[:3], **(each[3] if each[3:] else {})) for each in jobs])
    )


@pytest.mark.parametrize(
    ("rule", "best"),
    [
        ("min val/loss", ["best of uw by min val/loss: optimizer.lr=1 (0.3000, mean of 2 seeds)"]),
        ("max val/loss", ["best of uw by max val/loss: optimizer.lr=2 (0.4000, mean of 2 seeds)"]),
        ("last", []),
    ],
)
def test_best_setting_has_the_best_mean_over_seeds(tmp_path: Path, rule: str, best: list[str]) -> None:
    values = [(0, 0.1, "1"), (1, 0.5, "1"), (0, 0.4, "2"), (1, 0.4, "2"), (0, 0.0, "3")]  # 3 lacks a seed
    jobs = [(seed, value, f"optimizer.lr={rate}", {"selection": rule}) for seed, value, rate in values]
    assert sweep(tmp_path, jobs) == best


def test_no_best_setting_for_one_setting_or_missing_values(tmp_path: Path) -> None:
    assert sweep(tmp_path, [(0, 0.1, "weighting=uw"), (0, 0.2, "weighting=imtl_l")]) == []
    failed = {"status": "failed"}
    jobs = [(2, None, "optimizer.lr=1"), (2, 0.1, "optimizer.lr=2", failed), (2, 0.3, "optimizer.lr=3")]
    assert sweep(tmp_path, jobs) == []


def test_settings_are_compared_per_task_selection(tmp_path: Path) -> None:
    tmp_path = tmp_path / "a"
    tmp_path.mkdir()
    jobs = [
        job(tmp_path, 0, value, f"task={task}", f"optimizer.lr={rate}")
        for value, task, rate in ((0.1, "a", "1"), (0.2, "a", "2"), (9.0, "b", "1"), (8.0, "b", "2"))
    ]
    assert best_settings(summarize(jobs)) == [
        "best of uw task=a by min val/loss: optimizer.lr=1 (0.1000)",
        "best of uw task=b by min val/loss: optimizer.lr=2 (8.0000)",
    ]


def test_single_task_baselines_of_different_tasks_are_not_compared(tmp_path: Path) -> None:
    jobs = [(0, 0.1, "baseline=single_task", "only=a"), (0, 0.2, "baseline=single_task", "only=b")]
    assert best_settings(summarize([job(tmp_path, *each) for each in jobs])) == []


def test_batch_size_is_a_setting(tmp_path: Path) -> None:
    jobs = [(0, 0.2, "data.batch_size=32"), (0, 0.1, "data.batch_size=64")]
    assert sweep(tmp_path, jobs) == ["best of uw by min val/loss: data.batch_size=64 (0.1000)"]
