"""Whole runs with weighting.memory=auto: what was chosen is said, recorded, and kept by a resumed run."""

import pytest
import torch

from multitask.gradients import auto_memory
from tests.integration.small import Small, checkpoint, rows, stop

pytestmark = pytest.mark.slow
AUTO = ["weighting=upgrad", "weighting.memory=auto"]


def full() -> None:
    """No memory is free."""
    auto_memory.free_memory = lambda device: 0


def unknown() -> None:
    """No one knows how much memory is free."""
    auto_memory.available_memory = lambda: None


@pytest.mark.smoke
def test_rows_fit(small: Small) -> None:
    ran = small.run(*AUTO)
    chosen = ran.record["memory"]
    assert chosen["taken"] == "rows"
    assert 0 < chosen["bytes_needed"] <= chosen["bytes_free"]
    assert ran.out.count("weighting.memory=auto takes rows: rows need ") == 1
    same = small.run("weighting=upgrad", "weighting.memory=rows")
    assert rows(ran.folder / "metrics.csv") == rows(same.folder / "metrics.csv")
    assert "memory" not in same.record


def test_rows_do_not_fit_and_a_resumed_run_has_more_memory(small: Small) -> None:
    whole = small.run(*AUTO, before=full)
    assert whole.record["memory"]["taken"] == "stream"
    assert whole.record["memory"]["bytes_free"] == 0
    assert whole.out.count("weighting.memory=auto takes stream: rows need ") == 1
    stopped = small.any(
        *AUTO, *stop("on_train_batch_end", 11, "SIGTERM"), f"hydra.run.dir={small.stopped}", before=full
    )
    assert stopped.code == 143, stopped.err
    resumed = small.run(*AUTO, f"ckpt_path={small.stopped}/checkpoints/last.ckpt")
    assert resumed.record["memory"] == stopped.record["memory"] == whole.record["memory"]
    one, other = (checkpoint(ran.folder)["state_dict"] for ran in (whole, resumed))
    assert all(torch.equal(v, other[key]) for key, v in one.items() if isinstance(v, torch.Tensor))
    assert rows(whole.folder / "metrics.csv") == rows(resumed.folder / "metrics.csv")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["weighting=weighted_sum"], "is a scalarization"),
        (["weighting.memory=auot"], "did you mean 'auto'"),
        (["trainer.accumulate_grad_batches=2"], "memory=auto needs the whole batch in one forward pass"),
        ([], r"memory=auto cannot tell how much memory is free on cpu; set it to rows or stream."),
    ],
)
def test_refused_before_the_run(overrides: list[str], says: str, small: Small) -> None:
    ran = small.any(*AUTO, *overrides, before=unknown)
    assert ran.code == 1
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert not list(small.scripts.logs.rglob("run.json"))
