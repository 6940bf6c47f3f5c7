"""Memory of the jobs of a sweep."""

import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from multitask.run import train
from multitask.sweep import job


class Model:
    """Part of a reference cycle, as Trainer and module are."""

    def __init__(self) -> None:
        self.trainer = self


def test_objects_of_a_job_are_freed_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Model]] = []
    alive: list[int] = []

    def run(config: Any) -> None:
        alive.append(sum(ref() is not None for ref in held))
        held.append(weakref.ref(Model()))

    monkeypatch.setattr(train, "train", run)
    monkeypatch.setattr(job, "take_gpu", lambda config: None)
    monkeypatch.setattr(job, "as_single_run", lambda config, folder: nullcontext())
    for _ in range(3):
        job._run(OmegaConf.create(), tmp_path)
    assert alive == [0, 0, 0]
