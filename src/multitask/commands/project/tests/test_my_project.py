"""Tests of this project's data set, weighting and experiment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from my_project.data import Waves
from my_project.weighting import SoftMinimum

ROOT = Path(__file__).parents[1]


def test_the_splits_differ_and_the_side_is_that_of_the_wave() -> None:
    splits = Waves(examples=50, noise=0.0).load()
    assert not torch.equal(splits["train"]["inputs"], splits["val"]["inputs"])
    assert torch.equal(splits["test"]["scalar"] > 0, splits["test"]["side"] == 1)


def test_the_weights_of_the_losses_are_their_softmin() -> None:
    losses = torch.tensor([1.0, 3.0], requires_grad=True)
    SoftMinimum(2.0)(losses).backward()
    torch.testing.assert_close(losses.grad, torch.softmax(torch.tensor([-0.5, -1.5]), 0))


def test_temperature_is_positive() -> None:
    with pytest.raises(ValueError, match=r"weighting\.temperature=0"):
        SoftMinimum(0.0)


def test_the_experiment_trains(tmp_path: Path) -> None:
    small = [
        "experiment=waves",
        "data.examples=100",
        "trainer.max_epochs=1",
        "logger=csv",
        f"hydra.run.dir={tmp_path}",
    ]
    subprocess.run([sys.executable, "-m", "multitask", "train", *small], cwd=ROOT, check=True)
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["status"] == "completed"
