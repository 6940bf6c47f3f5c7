"""Runs with optimizer settings per parameter group."""

from pathlib import Path

import pytest
import torch

from tests.integration.script_runner import QUICK, Scripts


@pytest.mark.slow
@pytest.mark.smoke("upgrad")
@pytest.mark.parametrize("weighting", ["weighted_sum", "upgrad"])
def test_head_with_zero_learning_rate_does_not_change(
    weighting: str, scripts: Scripts, tmp_path: Path
) -> None:
    groups = "parameter_groups={tasks.left.*:{lr:0.0},trunk.*:{lr:1e-2}}"
    states = []
    for epochs in (1, 2):
        folder = tmp_path / str(epochs)
        given = [f"weighting={weighting}", groups, f"hydra.run.dir={folder}", "selection.metric=null"]
        ran = scripts.run(*QUICK, *given, f"trainer.max_epochs={epochs}")
        assert ran.code == 0, ran.err
        states.append(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    same = {
        name
        for name in states[0]
        if name.endswith("weight") and torch.equal(*(state[name] for state in states))
    }
    assert (
        same
        == {name for name in states[0] if name.startswith("tasks.left.") and name.endswith("weight")}
        != set()
    )


@pytest.mark.slow
def test_single_task_runs_ignore_groups_of_other_tasks(scripts: Scripts) -> None:
    groups = "parameter_groups={tasks.left.*:{lr:1e-4},tasks.right.*:{lr:1e-2}}"
    ran = scripts.run("-m", "baseline=single_task,none", groups, *QUICK, "trainer.max_epochs=1")
    assert ran.code == 0, ran.err
