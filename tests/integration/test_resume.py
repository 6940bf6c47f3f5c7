"""A run stopped anywhere and resumed ends bit for bit like an uninterrupted run."""

from pathlib import Path

import pytest
import torch

from tests.integration.small import Small, checkpoint, leaves, rows, stop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wholes() -> dict[tuple[str, ...], Path]:
    """The folders of uninterrupted runs, by their overrides."""
    return {}


def assert_same_end(one: Path, other: Path) -> None:
    for name in ("last", "best"):
        first, second = checkpoint(one, name), checkpoint(other, name)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step"):
            mine, its = dict(leaves(first[part])), dict(leaves(second[part]))
            assert mine.keys() == its.keys(), part
            for key, value in mine.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value, its[key]), (name, part, key)
                else:
                    assert value == its[key], (name, part, key)
    assert rows(one / "results.csv", "run") == rows(other / "results.csv", "run")
    assert rows(one / "metrics.csv") == rows(other / "metrics.csv")


def unfreeze(callback: str, *arguments: str) -> list[str]:
    """Return the overrides of a callback that freezes at the start and unfreezes at an epoch."""
    given = [f"_target_=tests.integration.unfreeze.{callback}", *arguments]
    return [f"+callbacks.unfreeze.{argument}" for argument in given]


EVERY_5 = "callbacks.checkpoint.every_n_train_steps=5"
SGD = ["optimizer=sgd", "optimizer.lr=0.05", "optimizer.momentum=0.9"]
CASES = {
    "first step": ([], stop("on_train_batch_end", 1, "SIGTERM")),
    "mid-epoch, learned scales": (["weighting=imtl_l"], stop("on_train_batch_end", 11, "SIGINT")),
    "mid-epoch, Jacobian": (["weighting=upgrad"], stop("on_train_batch_end", 11, "SIGTERM")),
    "last step of an epoch": (["weighting=upgrad"], stop("on_train_batch_end", 16, "SIGTERM")),
    "validation": (["weighting=imtl_l"], stop("on_validation_batch_end", 3, "SIGTERM")),
    "end of an epoch": (["weighting=upgrad"], stop("on_train_epoch_end", 2, "SIGINT")),
    "last validation": ([], stop("on_validation_batch_end", 8, "SIGTERM")),
    "evaluation": (["weighting=upgrad"], stop("on_test_start", 1, "SIGTERM")),
    "killed": (["weighting=imtl_l", EVERY_5], stop("on_train_batch_end", 14, "SIGKILL")),
    "killed, Jacobian": (["weighting=upgrad", EVERY_5], stop("on_train_batch_end", 17, "SIGKILL")),
    "killed in validation": (["weighting=upgrad", EVERY_5], stop("on_validation_start", 3, "SIGKILL")),
    "second Ctrl-C": ([EVERY_5], stop("on_train_batch_end", 14, "SIGINT", "SIGINT")),
    "plateau": (
        [*SGD, "scheduler=plateau", "scheduler.patience=0"],
        stop("on_train_batch_end", 18, "SIGTERM"),
    ),
    "plateau, Jacobian": (
        [*SGD, "weighting=upgrad", "scheduler=plateau", "scheduler.patience=0", "+scheduler.threshold=1.0"],
        stop("on_train_epoch_end", 2, "SIGTERM"),
    ),
    "cosine, by steps": (
        ["weighting=upgrad", "scheduler=cosine", "scheduler.interval=step", "scheduler.T_max=32"],
        stop("on_train_batch_end", 13, "SIGTERM"),
    ),
    "micro-batches": (
        ["weighting=imtl_l", "trainer.accumulate_grad_batches=3", "scheduler=step", "scheduler.step_size=1"],
        stop("on_train_batch_end", 13, "SIGTERM"),
    ),
    "micro-batches, Jacobian": (
        ["weighting=upgrad", "trainer.accumulate_grad_batches=3"],
        stop("on_train_batch_end", 10, "SIGTERM"),
    ),
    "validation in mid-epoch": (
        ["weighting=upgrad", "trainer.val_check_interval=0.5"],
        stop("on_validation_batch_end", 3, "SIGTERM"),
    ),
    "part of the batches": (["trainer.limit_train_batches=5"], stop("on_train_epoch_end", 2, "SIGTERM")),
    "averaged weights": (
        [
            "weighting=gradvac",
            "+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging",
            "+callbacks.ema.decay=0.5",
        ],
        stop("on_train_batch_end", 11, "SIGTERM"),
    ),
    "unfrozen by a callback": (
        ["weighting=upgrad", *unfreeze("ByHand", "epoch=1")],
        stop("on_train_epoch_end", 2, "SIGTERM"),
    ),
    "still frozen by a callback": (unfreeze("ByHand", "epoch=2"), stop("on_train_batch_end", 11, "SIGTERM")),
    "unfrozen, stopped in a validation": (
        [*unfreeze("ByHand", "epoch=1"), "trainer.val_check_interval=0.5"],
        stop("on_validation_batch_end", 11, "SIGTERM"),
    ),
    "finetuning of Lightning": (
        ["weighting=upgrad", *unfreeze("Finetuning", "epoch=1", "rate=0.001")],
        stop("on_train_batch_end", 21, "SIGTERM"),
    ),
    "finetuning of Lightning, not yet": (
        unfreeze("Finetuning", "epoch=2", "rate=0.001"),
        stop("on_train_batch_end", 9, "SIGTERM"),
    ),
    "reloaded data": (
        ["weighting=upgrad", "+trainer.reload_dataloaders_every_n_epochs=1"],
        stop("on_train_batch_end", 11, "SIGTERM"),
    ),
    "two processes, Jacobian": (
        ["weighting=upgrad", "trainer=ddp_cpu", "data.batch_size=8"],
        stop("on_train_batch_end", 11, "SIGTERM"),
    ),
    "two processes, sharded": (
        [
            "weighting=upgrad",
            "trainer=fsdp",
            "trainer.accelerator=cpu",
            "data.batch_size=8",
            "trainer.accumulate_grad_batches=2",
            "trainer.gradient_clip_val=0.5",
        ],
        stop("on_train_batch_end", 11, "SIGTERM"),
    ),
    "after early stopping": (
        ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=100"],
        stop("on_test_start", 1, "SIGKILL"),
    ),
    "before early stopping": (
        ["callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_delta=100"],
        stop("on_train_batch_end", 17, "SIGTERM"),
    ),
}


@pytest.mark.smoke("mid-epoch, Jacobian")
@pytest.mark.parametrize("case", CASES)
def test_resume_is_bit_for_bit(case: str, small: Small, wholes: dict[tuple[str, ...], Path]) -> None:
    overrides, stopping = CASES[case]
    key = tuple(overrides)
    if key not in wholes:
        wholes[key] = small.run(*overrides).folder
    stopped = small.stop(*overrides, *stopping)
    folder = small.stopped
    if "SIGKILL" not in stopping[-1]:
        assert stopped.out.splitlines()[-1] == str(folder)
        assert stopped.record["status"] == "interrupted"
        assert f"resume with ckpt_path={folder}/checkpoints/last.ckpt" in stopped.err
    resumed = small.run(*overrides, f"ckpt_path={folder}/checkpoints/last.ckpt")
    assert_same_end(wholes[key], resumed.folder)
    assert resumed.record["resumed_from"] == f"{folder}/checkpoints/last.ckpt"


def test_resume_in_the_same_folder_keeps_the_earlier_rows(small: Small) -> None:
    overrides = ["weighting=imtl_l", EVERY_5]
    whole = small.run(*overrides)
    small.stop(*overrides, *stop("on_train_batch_end", 19, "SIGKILL"))
    before = rows(small.stopped / "metrics.csv")
    assert before[-1]["step"] == "17"
    resumed = small.run(
        *overrides, f"ckpt_path={small.stopped}/checkpoints/last.ckpt", f"hydra.run.dir={small.stopped}"
    )
    assert resumed.folder == small.stopped
    assert_same_end(whole.folder, resumed.folder)
    # Rows after the checkpoint were written again; the original rows are kept.
    assert rows(small.stopped / "metrics.before-1.csv") == before


def test_new_run_in_a_used_folder_keeps_the_old_curves(small: Small) -> None:
    first = small.run("trainer.max_epochs=1")
    before = rows(first.folder / "metrics.csv")
    small.run("trainer.max_epochs=1", "seed=1", f"hydra.run.dir={first.folder}")
    assert rows(first.folder / "metrics.before-1.csv") == before
    assert len(rows(first.folder / "metrics.csv")) == len(before)
    assert rows(first.folder / "metrics.csv") != before


def test_longer_run_equals_the_shorter_one_resumed(small: Small) -> None:
    whole = small.run("weighting=upgrad", "trainer.max_steps=20", "trainer.max_epochs=-1")
    part = small.run("weighting=upgrad", "trainer.max_steps=11", "trainer.max_epochs=-1")
    longer = small.run(
        "weighting=upgrad",
        "trainer.max_steps=20",
        "trainer.max_epochs=-1",
        f"ckpt_path={part.folder}/checkpoints/last.ckpt",
    )
    one, other = checkpoint(whole.folder), checkpoint(longer.folder)
    for key, value in one["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other["state_dict"][key]), key
    assert one["global_step"] == other["global_step"] == 20


def test_best_weights_before_the_interruption_are_kept(small: Small) -> None:
    """The learning rate makes every epoch after the first worse."""
    overrides = ["scheduler=step", "scheduler.step_size=1", "scheduler.gamma=1000", "trainer.max_epochs=2"]
    whole = small.run(*overrides)
    small.stop(*overrides, *stop("on_train_batch_end", 10, "SIGTERM"))
    resumed = small.run(*overrides, f"ckpt_path={small.stopped}/checkpoints/last.ckpt")
    assert checkpoint(resumed.folder, "best")["global_step"] == 8
    assert_same_end(whole.folder, resumed.folder)
    assert {row["epoch"] for row in rows(resumed.folder / "results.csv")} == {"1"}


def test_resume_with_another_config_or_a_damaged_file_is_rejected(small: Small) -> None:
    small.stop("weighting=imtl_l", *stop("on_train_batch_end", 3, "SIGTERM"))
    last = small.stopped / "checkpoints" / "last.ckpt"
    for overrides, message in (
        (["weighting=upgrad"], "weighting._target_=torchjd.scalarization.IMTLL"),
        (["weighting=imtl_l", "optimizer.lr=0.5"], "optimizer.lr=0.02, and this one has optimizer.lr=0.5"),
        (["weighting=imtl_l", "seed=3"], "seed=0, and this one has seed=3"),
    ):
        ran = small.any(*overrides, f"ckpt_path={last}")
        ran.assert_error(message)
    whole = small.run("weighting=imtl_l")
    ran = small.any(
        "weighting=imtl_l", f"ckpt_path={whole.folder}/checkpoints/last.ckpt", "trainer.max_epochs=2"
    )
    assert ran.code == 1
    assert "was saved in epoch 4, and trainer.max_epochs=2 ends before; repeat the overrides" in ran.err
    (small.stopped / "damaged.ckpt").write_bytes(last.read_bytes()[:1000])
    ran = small.any("weighting=imtl_l", f"ckpt_path={small.stopped}/damaged.ckpt")
    ran.assert_error("cannot be read: it is cut short")
