"""Debug, optimizer, scheduler and trainer configs, each with the three kinds of weighting."""

from pathlib import Path

import pytest
import torch

from tests.integration.script_runner import Scripts
from tests.integration.small import Small, checkpoint, rows

pytestmark = pytest.mark.slow
METHODS = ["weighted_sum", "imtl_l", "upgrad"]


@pytest.mark.smoke("imtl_l")
@pytest.mark.parametrize("method", METHODS)
def test_debug_one_batch(method: str, scripts: Scripts) -> None:
    ran = scripts.run("debug=one_batch", f"weighting={method}")
    assert ran.code == 0, ran.err
    assert "test set" in ran.out
    assert ran.out.splitlines()[-1] == str(ran.folder)
    assert ran.record["steps"] == 1
    assert not (ran.folder / "checkpoints").exists()


@pytest.mark.parametrize("method", METHODS)
def test_debug_overfit(method: str, scripts: Scripts) -> None:
    ran = scripts.run("debug=overfit", f"weighting={method}", "logger=csv", "data.batch_size=32")
    assert ran.code == 0, ran.err
    losses = [
        float(row["train/loss/left"]) for row in rows(ran.folder / "metrics.csv") if row["train/loss/left"]
    ]
    # 96 images are memorized; different batches in each epoch would not be.
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_debug_profiler(method: str, small: Small) -> None:
    ran = small.run("debug=profiler", f"weighting={method}")
    assert "run_training_batch" in ran.out
    assert ran.out.splitlines()[-1] == str(ran.folder)


COMBINED = [
    ("sgd", "none", ["trainer.gradient_clip_val=0.5"]),
    ("adam", "cosine", ["trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value"]),
    ("adamw", "step", ["scheduler.interval=step", "scheduler.frequency=3"]),
    ("sgd", "plateau", ["callbacks=early_stopping", "trainer.check_val_every_n_epoch=2"]),
]


@pytest.mark.smoke("adam-cosine-more1-weighted_sum", "adamw-step-more2-upgrad", "sgd-plateau-more3-imtl_l")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("optimizer", "scheduler", "more"), COMBINED)
def test_optimizers_and_schedulers_combine_with_weightings(
    method: str, optimizer: str, scheduler: str, more: list[str], small: Small
) -> None:
    ran = small.run(f"weighting={method}", f"optimizer={optimizer}", f"scheduler={scheduler}", *more)
    assert ran.err == ""
    assert ran.record["status"] == "completed"
    assert ran.record["steps"] == 32
    pairs = {(row["task"], row["split"]) for row in rows(ran.folder / "results.csv")}
    assert {(task, split) for task in "ab" for split in ("val", "test")} <= pairs


def test_compiled_trunk_trains_like_the_original(small: Small) -> None:
    """Without dropout, for which compiled code draws other random numbers."""
    fixed = ["weighting=upgrad", "trunk=mlp_small", "trainer.max_epochs=1"]
    runs = [small.run(*fixed, f"compile={on}") for on in ("false", "true")]
    plain, compiled = (checkpoint(ran.folder)["state_dict"] for ran in runs)
    for key, value in plain.items():
        if key.startswith(("trunk.", "tasks.")):
            torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("method", METHODS)
def test_early_stopping_ends_the_run(method: str, small: Small) -> None:
    ran = small.run(
        f"weighting={method}",
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=100",
        "trainer.max_epochs=20",
    )
    assert ran.record["steps"] == 16
    assert ran.record["status"] == "completed"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("processes", [[], ["trainer=ddp_cpu", "data.batch_size=8"]])
def test_unused_layer_does_not_change_training(method: str, processes: list[str], small: Small) -> None:
    """The trunk also has an integer encoder, which does not change; several processes split a wider Jacobian."""
    overrides = [f"weighting={method}", "trunk=encoded", "trainer.max_epochs=1", *processes]
    without, beside = (small.run(*overrides, f"trunk.unused={on}") for on in ("false", "true"))
    assert beside.record["status"] == "completed"
    one, other = (checkpoint(ran.folder)["state_dict"] for ran in (without, beside))
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            close = {"rtol": 1e-4, "atol": 1e-6} if processes else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(other[key], value, **close, msg=key)
    assert one["trunk.codes"].dtype == torch.int8
    assert torch.equal(one["trunk.codes"].flatten()[:6], torch.tensor([-2, -1, 0, 1, 2, -2]))


def test_unselected_weights_are_recorded_as_last(small: Small) -> None:
    for overrides, selection in (
        (["trainer.max_steps=5"], "last"),  # before the first validation
        (["trainer.max_epochs=1"], "min val/loss"),
        (["trainer.max_epochs=1", "selection.metric=null", "callbacks.early_stopping=null"], "last"),
    ):
        ran = small.run(*overrides)
        assert ran.record["selection"] == selection
        assert {row["selection"] for row in rows(ran.folder / "results.csv")} == {selection}


def test_weights_of_another_dtype_are_rejected(small: Small, tmp_path: Path) -> None:
    start = checkpoint(small.run("trunk=encoded", "trainer.max_epochs=1").folder)["state_dict"]
    start["trunk.codes"] = start["trunk.codes"] + 0.5
    torch.save(start, tmp_path / "start.pt")
    ran = small.any("trunk=encoded", f"init_from={tmp_path}/start.pt")
    ran.assert_error("trunk.codes is torch.float32 in the file and torch.int8 in the model")
