"""Trunk and heads on data of every structure, through the script."""

from pathlib import Path

import numpy as np
import pytest

from tests.integration.script_runner import Ran, Scripts
from tests.integration.small import CONFIGS, checkpoint, rows, stop

pytestmark = pytest.mark.slow

FLAGS = (
    f"--config-dir={CONFIGS}",
    "logger=csv",
    "trainer.max_epochs=2",
    "data=kinds",
    "task=[two_head/a,two_head/b]",
    "weighting=upgrad",
)


def train(scripts: Scripts, kind: str, trunk: str, *more: str) -> Ran:
    target = f"trunk._target_=tests.integration.own.{trunk}" if trunk != "mlp" else "trunk=mlp"
    given = ["trunk=none", f"+{target}"] if trunk != "mlp" else [target]
    return scripts.run(*FLAGS, f"data.kind={kind}", *given, *more)


SUPPORTED = {
    "named": ("named", "Tokens"),
    "named, in one argument": ("named", "ByDict"),
    "several": ("several", "Fused", "model.inputs=[image,table]"),
    "ragged": ("ragged", "Tokens", "data.collate_fn=tests.integration.own.padded"),
    "tuple inputs": ("tuple inputs", "Pair"),
    "file names": ("file names", "mlp"),
    "stream": ("stream", "mlp"),
}


@pytest.mark.smoke("named", "stream")
@pytest.mark.parametrize("case", SUPPORTED)
def test_trains_on_every_structure(scripts: Scripts, case: str) -> None:
    ran = train(scripts, *SUPPORTED[case])
    assert ran.code == 0, ran.err
    assert {(r["task"], r["split"]) for r in rows(ran.folder / "results.csv")} == {
        (task, split) for task in "ab" for split in ("val", "test")
    }
    exact = case != "stream"
    assert (ran.record["resume"] == "exact") is exact
    assert ("order and position are not in the checkpoint" in ran.err) is not exact


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            ("tuple", "mlp"),
            "data gives a list for a batch, and trunk and heads look for inputs and targets by name",
        ),
        (("ragged", "Tokens"), "set data.collate_fn to a function"),
        (("several", "Fused"), "and no 'inputs'; set model.inputs"),
        (("several", "Fused", "model.inputs=[image]"), "trunk cannot take a dict of image for its inputs"),
        (("stream", "mlp", "trainer=ddp_cpu"), "every process the same examples"),
    ],
)
def test_unsupported_data_is_rejected_in_one_sentence(
    scripts: Scripts, case: tuple[str, ...], message: str
) -> None:
    ran = train(scripts, *case)
    ran.assert_error(message)


def test_resume_with_named_inputs_is_bit_for_bit(scripts: Scripts) -> None:
    overrides = ("named", "Tokens", "callbacks=stop_at")
    whole = train(scripts, *overrides)
    stopped = train(scripts, *overrides, *stop("on_train_batch_end", 6, "SIGTERM"))
    resumed = train(scripts, *overrides, f"ckpt_path={stopped.folder}/checkpoints/last.ckpt")
    assert resumed.code == 0, resumed.err
    assert rows(whole.folder / "results.csv", "run") == rows(resumed.folder / "results.csv", "run")
    assert rows(whole.folder / "metrics.csv") == rows(resumed.folder / "metrics.csv")


@pytest.mark.smoke
def test_curves_have_a_column_for_each_validated_key_from_the_start(scripts: Scripts, tmp_path: Path) -> None:
    """The cells of a task without validation labels are empty."""
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    a, b = x[:, 0].copy(), x[:, 1].copy()
    part = np.array(["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    b[40:50] = np.nan
    np.savez(tmp_path / "x.npz", inputs=x, a=a, b=b, part=part)
    more = ("+tasks.b.missing=true", "trunk=mlp_small", f"data.path={tmp_path}/x.npz", "data.split=part")
    ran = scripts.run(*FLAGS[:3], "data=npz", *FLAGS[4:], *more, "selection.metric=val/loss/a")
    assert ran.code == 0, ran.err
    curves = rows(ran.folder / "metrics.csv")
    assert {row["val/loss/b"] for row in curves} == {""}
    assert any(row["val/loss/a"] for row in curves)
    assert checkpoint(ran.folder)["rows"] > 0
