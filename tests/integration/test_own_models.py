"""Users' own models through the scripts: trained, swept, compared, resumed and evaluated."""

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration.script_runner import ROOT, Ran, Scripts, import_from
from tests.integration.small import CONFIGS, checkpoint, metrics, rows, stop

pytestmark = pytest.mark.slow

FLAGS = (f"--config-dir={CONFIGS}", "logger=csv", "trainer.max_epochs=2", "trainer.log_every_n_steps=2")
MINE = (*FLAGS, "model=autoencoder", "data=elsewhere")
RESUMABLE = (*FLAGS, "model=autoencoder", "data=npz", "data.batch_size=16", "callbacks=stop_at")


def run(scripts: Scripts, *arguments: str, **keywords: Any) -> Ran:
    ran = scripts.run(*arguments, **keywords)
    assert ran.code == 0, ran.err
    return ran


LOSSES = {(split, name, "loss") for split in ("val", "test") for name in ("rebuilt", "class")}


@pytest.mark.smoke("upgrad")
@pytest.mark.parametrize("weighting", ["weighted_sum", "uw", "upgrad"])
def test_trains_on_data_of_another_project(scripts: Scripts, weighting: str) -> None:
    ran = run(scripts, *MINE, f"weighting={weighting}", "callbacks.conflict.probe_every=1")
    combined = (
        {(split, "combined", "loss") for split in ("val", "test")} if weighting == "weighted_sum" else set()
    )
    assert metrics(ran.folder).keys() == LOSSES | combined
    assert ran.record["resume"].startswith("the training batches come from a DataLoader")
    assert ran.err.count("come from a DataLoader") == 1
    assert "encoder" in ran.out  # in the summary
    curves = rows(ran.folder / "metrics.csv")
    for key in ("train/loss/rebuilt", "val/loss/class", "val/loss", "conflict/cosine/rebuilt__class"):
        assert any(row[key] for row in curves), key
    config = json.dumps(checkpoint(ran.folder)["config"])
    assert "tests.integration.own.Autoencoder" in config
    assert "lenet" not in config
    measured = run(scripts, f"ckpt_path={ran.folder}/checkpoints/best.ckpt", script="eval")
    assert metrics(measured.folder) == metrics(ran.folder)


@pytest.mark.parametrize("kind", ["tuple", "box", "stream"])
def test_trains_on_every_batch_type(scripts: Scripts, kind: str) -> None:
    ran = run(scripts, *MINE, "weighting=upgrad", f"data.kind={kind}")
    found = metrics(ran.folder)
    assert found.keys() == LOSSES
    # With tuples there are two validation loaders: each example counts twice, and the means are the same.
    assert found["val", "rebuilt", "loss"] == pytest.approx(found["test", "rebuilt", "loss"], rel=1e-6)


def test_model_class_can_be_given_on_the_command_line(scripts: Scripts) -> None:
    """The defaults of trunk, tasks and model arguments are dropped."""
    target = "model._target_=tests.integration.own.Autoencoder"
    ran = run(
        scripts,
        *FLAGS,
        "data=elsewhere",
        target,
        "+model.width=3",
        "task_check=true",
        "trunk=none",
        "task=[]",
    )
    assert "losses at initialization" in ran.out
    assert checkpoint(ran.folder)["state_dict"]["classifier.weight"].shape == (2, 3)
    assert (
        run(scripts, *FLAGS, "data=elsewhere", target, "trainer.max_epochs=1").record["status"] == "completed"
    )


@pytest.mark.smoke
def test_own_validation_and_test_steps(scripts: Scripts) -> None:
    metric = ("selection.metric=val/class/accuracy", "selection.mode=max")
    ran = run(scripts, *MINE, "model=measured", *metric, "weighting=pcgrad")
    found = metrics(ran.folder)
    assert found.keys() == LOSSES | {(split, "class", "accuracy") for split in ("val", "test")}
    assert 0 <= found["test", "class", "accuracy"] <= 1
    written = rows(ran.folder / "results.csv")
    assert {r["higher_is_better"] for r in written if r["metric"] == "accuracy"} == {"True"}
    assert ran.record["selection"] == "max val/class/accuracy"
    last_two = [{key for key, value in row.items() if value} for row in rows(ran.folder / "metrics.csv")[-2:]]
    assert "final/val/class/accuracy" in last_two[0]
    assert "test/class/accuracy" not in last_two[0]
    assert "test/class/accuracy" in last_two[1]


def test_own_optimizer(scripts: Scripts) -> None:
    own = (*MINE, "model=optimized", "weighting=imtl_l")
    ran = run(scripts, *own, "optimizer=own")
    (optimizer,) = checkpoint(ran.folder)["optimizer_states"]
    assert optimizer["param_groups"][0]["betas"][0] != 0.9 or optimizer["param_groups"][0]["lr"] < 0.01
    weights = checkpoint(ran.folder)["state_dict"]
    assert any(bool(v.any()) for k, v in weights.items() if k.startswith("weighting."))


REFUSED = {
    ("model=optimized",): "optimizer._target_=torch.optim.Adam would do nothing",
    ("model=optimized", "optimizer=own", "scheduler=cosine"): "scheduler._target_=",
    (
        "model=optimized",
        "optimizer=own",
        "weighting=imtl_l",
        "weighting.learning_rate=0.1",
    ): "would do nothing",
    ("model=forgetful", "optimizer=own", "weighting=imtl_l"): "configure_optimizers leaves them out",
    ("optimizer=own",): "optimizer=own is what configure_optimizers makes, and Autoencoder defines none",
    ("trunk=mlp",): "trunk=mlp belongs to a model of trunk and heads",
    ("task=[two_head/a]",): "task=[two_head/a] belongs to a model of trunk and heads",
    ("experiment=small",): "trunk=dropout belongs to a model of trunk and heads",
    ("tasks.left.target=x",): "tasks.left.target=x belongs to a model of trunk and heads",
    ("model=careless",): "Careless.on_train_epoch_end overrides MultiLossModule's hook",
    ("model._target_=torch.nn.Identity",): "is no multitask.MultiLossModule",
    ("model._target_=tests.integration.own.Nothing",): "has no 'Nothing'",
    ("model.widht=3",): "model.widht is not a key",
    ("compile=true",): "compile=true compiles the trunk",
    ("baseline=single_task",): "choose among tasks",
    ("weighting=iwmtl",): "define losses_by_part",
    ("weighting=gradnorm", "weighting.layer=last"): "weighting.layer=last is not a layer of the model",
    ("weighting.weights={rebuild:2}",): "rebuild",
    ("model=measured",): "selection.metric=val/loss is not logged; choices: val/class/accuracy",
    ("evaluation.splits=[train]",): "may shuffle, repeat or augment",
    ("data.drop_last=true",): "data.drop_last=True is a key of multitask.data.base.DataModule",
    ("callbacks=trajectory",): "the model has no trunk",
    ("data.kind=stream", "trainer.limit_train_batches=0.5"): "whose loader has no length",
}


@pytest.mark.smoke("trunk=mlp", "model=optimized")
@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_invalid_config_is_rejected_in_one_sentence(scripts: Scripts, overrides: tuple[str, ...]) -> None:
    ran = scripts.run(*MINE, *overrides)
    ran.assert_error(REFUSED[overrides])


@pytest.mark.parametrize("weighting", ["imtl_l", "upgrad"])
def test_resume_on_resumable_data_is_bit_for_bit(scripts: Scripts, arrays: Path, weighting: str) -> None:
    overrides = (*RESUMABLE, f"data.path={arrays}", f"weighting={weighting}", "optimizer.lr=0.02")
    whole = run(scripts, *overrides)
    assert whole.record["resume"] == "exact"
    stopped = scripts.run(*overrides, *stop("on_train_batch_end", 12, "SIGTERM"))
    assert stopped.code == 143, stopped.err
    resumed = run(scripts, *overrides, f"ckpt_path={stopped.folder}/checkpoints/last.ckpt")
    one, other = (checkpoint(ran.folder)["state_dict"] for ran in (whole, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(v, other[key]) for key, v in one.items() if isinstance(v, torch.Tensor))
    assert rows(whole.folder / "results.csv", "run") == rows(resumed.folder / "results.csv", "run")
    assert rows(whole.folder / "metrics.csv") == rows(resumed.folder / "metrics.csv")


def test_resume_on_other_data_reaches_the_same_number_of_steps(scripts: Scripts) -> None:
    overrides = (*MINE, "callbacks=stop_at", "weighting=upgrad")
    stopped = scripts.run(*overrides, *stop("on_train_batch_end", 6, "SIGTERM"))
    assert stopped.code == 143, stopped.err
    resumed = run(scripts, *overrides, f"ckpt_path={stopped.folder}/checkpoints/last.ckpt")
    assert resumed.record["steps"] == 8


def test_sweeps_and_compares(scripts: Scripts) -> None:
    ran = run(
        scripts,
        "-m",
        *MINE,
        "trainer.max_epochs=1",
        "weighting=weighted_sum,upgrad",
        "seed=0,1",
        "sweep=mine",
    )
    assert ran.code == 0
    folder = scripts.logs / "elsewhere" / "sweeps" / "mine"
    assert len(list(folder.glob("*/results.csv"))) == 4
    compared = scripts.start_file(
        "scripts/compare.py", f"source={folder}", before=partial(os.chdir, scripts.logs)
    ).wait()
    assert compared.code == 0, compared.err
    assert "upgrad" in compared.out
    assert "rebuilt" in compared.out


def test_init_from_loads_weights(scripts: Scripts, tmp_path: Path) -> None:
    first = run(scripts, *MINE, "trainer.max_epochs=1")
    again = run(
        scripts, *MINE, f"init_from={first.folder}/checkpoints/last.ckpt", "weighting=uw", "optimizer.lr=0"
    )
    one, other = (checkpoint(ran.folder)["state_dict"] for ran in (first, again))
    assert all(torch.equal(one[key], other[key]) for key in one if key.endswith("weight"))
    torch.save({"encoder.0.weight": torch.zeros(5, 6)}, tmp_path / "part.pt")
    ran = scripts.run(*MINE, f"init_from={tmp_path}/part.pt")
    assert "does not fit: it lacks" in ran.err


def test_documented_model_runs(scripts: Scripts, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "own_models.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(# mine\.py.*?)```", text, re.DOTALL)
    assert code
    (tmp_path / "mine.py").write_text(code[1])
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    np.savez(tmp_path / "file.npz", inputs=x, classes=(x[:, 0] > 0).astype(int))
    given = (
        "model._target_=mine.Autoencoder",
        "data=npz",
        f"data.path={tmp_path}/file.npz",
        "weighting=upgrad",
    )
    found = partial(import_from, str(tmp_path))
    ran = run(scripts, *given, "logger=csv", "trainer.max_epochs=1", before=found)
    assert "rebuilt" in ran.out


@pytest.mark.smoke
def test_experiment_without_trunk_runs(scripts: Scripts) -> None:
    ran = run(scripts, f"--config-dir={CONFIGS}", "experiment=own", "trainer.max_epochs=1")
    assert ran.record["experiment"] == "own"
