"""Runs with weighting.memory=auto: the choice is printed, recorded, and kept on resume."""

import pytest
import torch

from multitask.gradients import auto_memory
from tests.integration.small import Small, checkpoint, rows, stop

pytestmark = pytest.mark.slow
AUTO = ["weighting=upgrad", "weighting.memory=auto"]


def no_memory() -> None:
    """Report no free memory."""
    auto_memory.free_memory = lambda device: 0


def unknown_memory() -> None:
    """Report that the free memory is unknown."""
    auto_memory.available_memory = lambda: None


@pytest.mark.smoke
def test_auto_takes_rows_when_they_fit(small: Small) -> None:
    ran = small.run(*AUTO)
    chosen = ran.record["memory"]
    assert chosen["taken"] == "rows"
    assert 0 < chosen["bytes_needed"] <= chosen["bytes_free"]
    assert ran.out.count("weighting.memory=auto takes rows: rows need ") == 1
    same = small.run("weighting=upgrad", "weighting.memory=rows")
    assert rows(ran.folder / "metrics.csv") == rows(same.folder / "metrics.csv")
    assert "memory" not in same.record


def test_auto_takes_stream_when_rows_do_not_fit_and_keeps_it_on_resume(small: Small) -> None:
    whole = small.run(*AUTO, before=no_memory)
    assert whole.record["memory"]["taken"] == "stream"
    assert whole.record["memory"]["bytes_free"] == 0
    assert whole.out.count("weighting.memory=auto takes stream: rows need ") == 1
    stopped = small.any(
        *AUTO, *stop("on_train_batch_end", 11, "SIGTERM"), f"hydra.run.dir={small.stopped}", before=no_memory
    )
    assert stopped.code == 143, stopped.err
    resumed = small.run(*AUTO, f"ckpt_path={small.stopped}/checkpoints/last.ckpt")
    assert resumed.record["memory"] == stopped.record["memory"] == whole.record["memory"]
    one, other = (checkpoint(ran.folder)["state_dict"] for ran in (whole, resumed))
    assert all(torch.equal(v, other[key]) for key, v in one.items() if isinstance(v, torch.Tensor))
    assert rows(whole.folder / "metrics.csv") == rows(resumed.folder / "metrics.csv")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["weighting=weighted_sum"], "is a scalarization"),
        (["weighting.memory=auot"], "did you mean 'auto'"),
        (["trainer.accumulate_grad_batches=2"], "memory=auto needs the whole batch in one forward pass"),
        ([], r"memory=auto cannot tell how much memory is free on cpu; set it to rows or stream."),
    ],
)
def test_invalid_config_is_rejected_before_the_run(overrides: list[str], message: str, small: Small) -> None:
    ran = small.any(*AUTO, *overrides, before=unknown_memory)
    ran.assert_error(message)
    assert not list(small.scripts.logs.rglob("run.json"))
