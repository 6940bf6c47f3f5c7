"""A failed run reports the reason, and its earlier files stay readable."""

import resource
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.integration.script_runner import Scripts
from tests.integration.small import Small, checkpoint, leaves, rows

pytestmark = pytest.mark.slow
METHODS = ["weighted_sum", "imtl_l", "upgrad"]


@pytest.fixture
def poisoned(arrays: Path, scripts: Scripts, tmp_path: Path) -> Small:
    """Runs on data in which the squared targets of one training example overflow."""
    with np.load(arrays) as file:
        content = dict(file)
    split = np.array(["train"] * 128 + ["val"] * 36 + ["test"] * 36)
    content["a"][77] = content["b"][77] = 1e30
    path = tmp_path / "poisoned.npz"
    np.savez(path, **content, split=split)
    return Small(scripts, path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("window", [1, 3])
def test_non_finite_loss_stops_the_run_and_keeps_the_state_before_it(
    method: str, window: int, poisoned: Small
) -> None:
    overrides = [f"weighting={method}", "data.split=split", f"trainer.accumulate_grad_batches={window}"]
    ran = poisoned.any(*overrides)
    assert ran.code == 1
    assert "Traceback" not in ran.err
    step = int(ran.err.partition("is not finite at step ")[2].split(".")[0])
    assert "error: The loss of a (inf), b (inf) is not finite" in ran.err
    assert 0 < step * window < 8
    assert ran.record["status"] == "failed"
    assert ran.record["error"] in ran.err
    assert str(ran.folder / "checkpoints" / "last.ckpt") in ran.record["error"]
    assert ran.record["steps"] == step
    curves = rows(ran.folder / "metrics.csv")
    assert curves
    assert all(np.isfinite(float(row["train/loss/a"])) for row in curves)
    # The same run, ended right before the failing step.
    before = poisoned.run(*overrides, f"trainer.max_steps={step}", "evaluation.splits=[val]")
    mine, its = checkpoint(ran.folder), checkpoint(before.folder)
    for part in ("state_dict", "optimizer_states"):
        for (key, value), (_, other) in zip(leaves(mine[part]), leaves(its[part]), strict=True):
            if isinstance(value, torch.Tensor) and "extra_state" not in key:
                assert torch.equal(value, other), key
    # Resumed with the same data, the run fails at the same batch.
    again = poisoned.any(*overrides, f"ckpt_path={ran.folder}/checkpoints/last.ckpt")
    assert again.code == 1
    assert f"is not finite at step {step}." in again.err


def test_run_resumes_after_the_data_has_been_repaired(poisoned: Small, arrays: Path, tmp_path: Path) -> None:
    overrides = ["weighting=upgrad", "data.split=split"]
    failed = poisoned.any(*overrides)
    with np.load(poisoned.arrays) as file, np.load(arrays) as good:
        repaired = {**file, "a": good["a"], "b": good["b"]}
    np.savez(tmp_path / "repaired.npz", **repaired)
    whole = Small(poisoned.scripts, tmp_path / "repaired.npz").run(*overrides)
    resumed = Small(poisoned.scripts, tmp_path / "repaired.npz").run(
        *overrides, f"ckpt_path={failed.folder}/checkpoints/last.ckpt"
    )
    assert rows(whole.folder / "results.csv", "run") == rows(resumed.folder / "results.csv", "run")


@pytest.mark.smoke
def test_divergence_keeps_the_last_finite_state(small: Small) -> None:
    ran = small.any("optimizer=sgd", "optimizer.lr=1e18", "callbacks.checkpoint.every_n_train_steps=1")
    assert ran.code == 1
    assert "is not finite at step" in ran.err
    state = checkpoint(ran.folder)["state_dict"]
    assert all(bool(v.isfinite().all()) for v in state.values() if isinstance(v, torch.Tensor))


def _limit_file_size(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_full_disk_at_a_checkpoint_is_reported(small: Small) -> None:
    ran = small.any(before=partial(_limit_file_size, 12_000))
    assert ran.code == 1
    assert "error: cannot write" in ran.err
    assert "File too large; choose another folder with hydra.run.dir=… or paths.logs=…" in ran.err
    assert "Traceback" not in ran.err
    assert ran.record["status"] == "failed"
    assert len(rows(ran.folder / "metrics.csv")) > 1


def test_full_disk_at_the_curves_is_reported(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / ".keep").touch()
    ran = small.any(f"hydra.run.dir={folder}", before=partial(_limit_file_size, 4_500))
    ran.assert_error("error: cannot write")


def test_bug_in_user_code_shows_its_traceback(small: Small) -> None:
    ran = small.any("callbacks.stop_at.hook=on_train_batch_end", "callbacks.stop_at.signals=[NOSUCHSIGNAL]")
    assert ran.code == 1
    assert "AttributeError: module 'signal' has no attribute 'NOSUCHSIGNAL'" in ran.err
    assert "stop_at.py" in ran.err
    assert ran.record["status"] == "failed"
    assert "NOSUCHSIGNAL" in ran.record["error"]
