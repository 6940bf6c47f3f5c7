"""Checkpoints and configs of version 0.1 can be read."""

from typing import Any

import pytest
import torch

from multitask.run.record import recipe_digest
from tests.integration.script_runner import Scripts
from tests.integration.small import Small, checkpoint, rows, stop

pytestmark = pytest.mark.slow

METHODS = {
    "upgrad": ["weighting=upgrad"],
    "uw": ["weighting=uw"],
    "pcgrad": ["weighting=pcgrad"],
    "by layer": ["weighting=upgrad", "weighting.groups=layer"],
}


def older(content: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint as 0.1 wrote it."""
    state = content.pop("multitask")
    config = content["config"]
    del config["model"], config["data"]["collate_fn"], config["data"]["drop_last"]
    del config["weighting"]["memory"]
    return {**content, "telemetry": state["telemetry"], "validated": state["validated"]}


@pytest.mark.smoke("upgrad")
@pytest.mark.parametrize("method", METHODS)
def test_older_checkpoints_are_evaluated_and_resumed(method: str, small: Small, scripts: Scripts) -> None:
    whole = small.run(*METHODS[method])
    small.stop(*METHODS[method], *stop("on_train_batch_end", 11, "SIGTERM"))
    last = small.stopped / "checkpoints" / "last.ckpt"
    content = older(checkpoint(small.stopped))
    torch.save(content, last)
    measured = scripts.run(f"ckpt_path={last}", script="eval")
    assert measured.code == 0, measured.err
    resumed = small.run(*METHODS[method], f"ckpt_path={last}")
    one, other = (checkpoint(ran.folder)["state_dict"] for ran in (whole, resumed))
    assert all(torch.equal(v, other[key]) for key, v in one.items() if isinstance(v, torch.Tensor))
    assert rows(whole.folder / "metrics.csv") == rows(resumed.folder / "metrics.csv")


def test_older_configs_have_the_digests_of_newer_ones(small: Small) -> None:
    config = checkpoint(small.run("trainer.max_epochs=1").folder)["config"]
    before = older({"multitask": {"telemetry": {}, "validated": {}}, "config": _copied(config)})["config"]
    for task in (None, "a"):
        assert recipe_digest(before, task) == recipe_digest(config, task)
    other = {**config, "model": {**config["model"], "inputs": ["inputs", "a"]}}
    assert recipe_digest(other) != recipe_digest(config)


def _copied(config: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
