"""A user's mistake is reported in one sentence that names the key."""

from pathlib import Path

import pytest

from tests.integration.script_runner import ROOT, Scripts, run_python
from tests.integration.small import CONFIGS

pytestmark = pytest.mark.slow

# Reported before any heavy import.
LIGHT = {
    "weighting=upgrd": "weighting=upgrd is unknown; did you mean 'upgrad'? Choices: ",
    "experiment=two_hed": "did you mean 'two_head'?",
    "trainer.max_epoch=3": "trainer.max_epoch is not a key of trainer; did you mean 'max_epochs'?",
    "task=[multi_mnist/lft]": "task=[multi_mnist/lft] is unknown; did you mean 'multi_mnist/left'?",
    "task=[multi_mnst/left]": "did you mean 'multi_mnist/left'?",
    "task=[]": "task=[] leaves no task; choose at least one",
    "weighting.weights={lft:1}": "weighting.weights.lft: there is no task 'lft'; did you mean 'left'?",
    "tasks.left.hed.out_features=3": "tasks.left.hed is not a key of tasks.left; did you mean 'head'?",
    "optimizer.lrr=1": "optimizer.lrr is not a key of optimizer; did you mean 'lr'?",
    "optimizer.lr=": "optimizer.lr= is not a number of at least 0.",
    "optimizer.lr=fast": "optimizer.lr=fast is not a number of at least 0.",
    "optimizer.lr=???": "optimizer.lr has no value; set optimizer.lr=",
    "trainer.max_epochs=abc": "trainer.max_epochs=abc is not a whole number of at least -1, or null.",
    "trainer.gradient_clip_algorithm=nrm": "did you mean 'norm'? Choices: norm, value.",
    "trainer.enable_progress_bar=maybe": "trainer.enable_progress_bar=maybe is not true or false.",
    "task_check=no": "task_check=no is not true or false.",
    "compile=yes": "compile=yes is not true or false.",
    "selection.mode=maximum": "selection.mode=maximum is not one of min, max; did you mean 'max'?",
    "data.batch_size=0": "data.batch_size=0 is not a whole number of at least 1, or null.",
    "seed=abc": "seed=abc is not a whole number of at least 0.",
    "logger.wandb.mode=onlin": "did you mean 'online'?",
    "scheduler=cosine trainer.max_epochs=-1": "scheduler.T_max=-1 is not a whole number of at least 1.",
    "+tasks.mean=${tasks.left}": "tasks.mean cannot be the name of a task: <split>/mean/<metric> is the mean",
    "+tasks.type=${tasks.left}": "tasks.type cannot be the name of a task: a torch module has an attribute",
    "+tasks.left.metrics.loss=${tasks.left.metrics.accuracy}": "tasks.left.metrics.loss cannot be the name of a metric",
    "method=single_task": "method=single_task is the record's name for a task trained alone",
    "optimizer=null": "optimizer=null chooses nothing from the group optimizer; leave it out, or choose one of adam, ",
    "scheduler=null": "choose one of cosine, none, plateau, step.",
    "trainer=3": "trainer=3 chooses nothing from the group trainer",
    "task=null": "task=null chooses nothing from the group task",
    "task=[null]": "task=[null] chooses nothing from the group task",
    "experiment=null": "experiment=null chooses nothing from the group experiment; leave it out",
    "-m weighting=upgrad,null": "chooses nothing from the group weighting",
    "taks=[multi_mnist/left]": "taks is not a key of the config; did you mean 'tasks' or 'task'?",
    "~optimizer": "optimizer names no _target_; choose one with optimizer=",
    "~scheduler": "scheduler is missing from the config; choose scheduler=none.",
    "trunk._target_=null": "trunk names no _target_; choose one with trunk=",
    "selection=null": "selection has no keys",
    "evaluation.splits=null": "evaluation.splits=null is not a list of names in brackets.",
    "tasks.left=null": "tasks.left names no _target_",
    "tasks.left.head=null": "tasks.left.head=null; a task needs a head.",
    "+trainer.callbacks=[]": "trainer.callbacks is set through other keys; remove it and choose callbacks=",
    "+trainer.logger=false": "trainer.logger is set through other keys; remove it and choose logger=",
    "+trainer.barebones=true": "trainer.barebones=true disables the loggers",
    "+trainer.sync_batchnorm=true": "trainer.sync_batchnorm=true is for several GPUs",
    "trainer.val_check_interval=0": "trainer.val_check_interval=0 is not an interval",
    "trainer.check_val_every_n_epoch=11 callbacks=early_stopping": "check_val_every_n_epoch=11 comes after the last",
    "trainer.limit_val_batches=0 scheduler=plateau": "scheduler.monitor=val/loss needs",
    "trainer.limit_test_batches=0": "trainer.limit_test_batches=0 leaves no batch of evaluation.splits",
    "data.drop_last=maybe": "data.drop_last=maybe is not true or false.",
    "max_epochs": "the override max_epochs cannot be read",
    "a=[1": "the override a=[1 cannot be read",
    "hydra.run.dir=/dev/null/run": "hydra.run.dir=/dev/null/run cannot be written: Not a directory",
}

# Reported before the first training step.
HEAVY = {
    "data.path=nope.npz": "data.path=nope.npz does not exist; it must be an .npz with",
    "ckpt_path=nope.ckpt": "ckpt_path=nope.ckpt does not exist",
    "init_from=nope.ckpt": "init_from=nope.ckpt does not exist",
    "init_from=README.md": "init_from=README.md cannot be read: it is cut short",
    "weighting.weights=0.3": "one number for 2 tasks; give one each, weighting.weights={left:0.3,right:0.3}.",
    "trunk._target_=multitask.nn.lenet.lenett": "multitask.nn.lenet has no 'lenett'; did you mean 'lenet'?",
    "tasks.left.loss._target_=torch.nn.CrossEntropyLos": "did you mean 'CrossEntropyLoss'?",
    "trunk._target_=nopackage.Trunk": "there is no package 'nopackage'.",
    "trunk._target_=lightning.nomodule.Trunk": "lightning has no 'nomodule'",
    "trunk.width=wide": "trunk cannot take inputs of shape [1, 28, 28]",
    "selection.metric=val/acuracy": "selection.metric=val/acuracy is not logged; did you mean 'val/mean/accuracy'?",
    "scheduler=plateau scheduler.monitor=val/los": "scheduler.monitor=val/los is not logged; did you mean 'val/loss'?",
    "callbacks=early_stopping callbacks.early_stopping.monitor=val/los": "monitor=val/los is not logged",
    "evaluation.splits=[tst]": "evaluation.splits names tst, and the data has train, val, test",
    "+optimizer.lrr=1": "optimizer.lrr is not an argument of torch.optim.Adam; did you mean 'lr'?",
    "+optimizer.trunk_lr=1e-4": "Learning rates of parts of the model are set by parameter_groups.",
    "+trunk.lr=1e-4": "trunk.lr is not an argument of multitask.nn.lenet.lenet; ",
    "+tasks.left.head.lr=1e-4": "tasks.left.head.lr is not an argument of torch.nn.LazyLinear; ",
    "scheduler=cosine +scheduler.warmup=3": "scheduler.warmup is not an argument of torch.optim.lr_sch",
    "trainer.val_check_interval=100": "trainer.val_check_interval=100 is more than the 6 batches of an epoch",
    "trainer.precision=17": "Precision 17 is invalid",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU, and the run is on the CPU; use trainer=gpu",
    "weighting=krum": "weighting=krum needs 3 tasks",
    "weighting=upgrad trainer.strategy=fsdp": "no task has a gradient of its own; use trainer=fsdp",
    "weighting=graddrop weighting.heads=weighted": "gives a gradient but no weights for the heads",
    "weighting=upgrad +weighting.scale=1": "weighting.scale is not an argument of multitask.weighting.upgrad.UPGrad",
    "weighting=cagrad weighting._target_=torchjd.aggregation.CAGradWeighting": (
        'needs a solver that is not installed; run pip install -c constraints.txt -e ".[solvers]"'
    ),
    "+callbacks.swa._target_=lightning.pytorch.callbacks.StochasticWeightAveraging +callbacks.swa.swa_lrs=0.1": (
        "callbacks.swa puts the averaged weights in place at the end"
    ),
    "+callbacks.bar._target_=lightning.pytorch.callbacks.RichProgressBar": (
        "callbacks.progress and callbacks.bar are progress bars, and a run has one; set callbacks.progress=null."
    ),
    "+callbacks.a._target_=lightning.pytorch.callbacks.Timer +callbacks.b._target_=lightning.pytorch.callbacks.Timer": (
        "callbacks.a and callbacks.b (Timer) have the same state key"
    ),
    "+callbacks.find._target_=lightning.pytorch.callbacks.BatchSizeFinder": "remove it and set data.batch_size.",
    "weighting=upgrad optimizer._target_=torch.optim.LBFGS ~optimizer.weight_decay": (
        "optimizer=LBFGS computes the loss several times in a step, and weighting=upgrad computes gradients once"
    ),
    "trainer.overfit_batches=0.001": "trainer.overfit_batches=0.001 is less than one of the",
    "trainer.limit_val_batches=0.01": "trainer.limit_val_batches=0.01 is less than one of the",
    "data.batch_size=4000 data.drop_last=true": "data.drop_last=true leaves no batch of 4000",
    "trainer.accelerator=quantum": "invalid accelerator name",
    "data.split=[0.8,0.1]": "must be three shares",
    "data.split=[1.0,0.0,0.0] evaluation.splits=[train]": "needs a validation split and the data has none",
    "data.split=[1.0,0.0,0.0] evaluation.splits=[train] selection.metric=null scheduler=plateau": (
        "or choose a scheduler that watches nothing, such as scheduler=none."
    ),
}


def quick(overrides: str) -> list[str]:
    return [
        "trainer.limit_train_batches=6",
        *([] if "wandb" in overrides else ["logger=csv"]),
        *overrides.split(),
    ]


def assert_one_sentence(err: str, message: str) -> None:
    assert message in err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1, err


@pytest.mark.smoke("weighting=upgrd", "optimizer.lrr=1")
@pytest.mark.parametrize("overrides", LIGHT)
def test_typo_is_reported(overrides: str, scripts: Scripts) -> None:
    ran = scripts.run(*quick(overrides))
    assert ran.code == 1
    assert ran.out == ""
    assert_one_sentence(ran.err, LIGHT[overrides])
    assert not list(scripts.logs.glob("*/runs/*"))


@pytest.mark.smoke("data.path=nope.npz")
@pytest.mark.parametrize("overrides", HEAVY)
def test_invalid_config_is_reported(overrides: str, scripts: Scripts) -> None:
    ran = scripts.run(*quick(overrides))
    assert ran.code == 1
    assert_one_sentence(ran.err, HEAVY[overrides])
    assert not list(scripts.logs.glob("*/runs/*"))


@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_missing_gpu_is_reported(trainer: str, scripts: Scripts) -> None:
    ran = scripts.run(f"trainer={trainer}", env={"CUDA_VISIBLE_DEVICES": ""})
    assert ran.code == 1
    assert_one_sentence(
        ran.err, "trainer.accelerator=gpu needs a GPU and torch finds none; choose trainer=cpu."
    )
    assert not list(scripts.logs.glob("*/runs/*"))


def test_typo_is_reported_before_heavy_imports(tmp_path: Path) -> None:
    ran = run_python("-X", "importtime", str(ROOT / "scripts/train.py"), "optimizer.lrr=1", cwd=tmp_path)
    imported = {
        line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")
    }
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "numpy", "wandb", "pandas", "rich", "matplotlib"}
    assert ran.stderr.splitlines()[-1].startswith("error: optimizer.lrr is not a key")
    assert not list(tmp_path.iterdir())


def test_wrong_target_of_a_users_weighting_is_reported(scripts: Scripts, tmp_path: Path) -> None:
    (tmp_path / "weighting").mkdir()
    (tmp_path / "weighting" / "mine.yaml").write_text("_target_: torchjd.aggregation.UPGradWeightin\n")
    ran = scripts.run(f"--config-dir={tmp_path}", "weighting=mine")
    assert ran.code == 1
    assert_one_sentence(
        ran.err, "torchjd.aggregation has no 'UPGradWeightin'; did you mean 'UPGradWeighting'?"
    )
    (tmp_path / "weighting" / "mine.yaml").write_text("weights: [1, 2]\n")
    assert_one_sentence(
        scripts.run(f"--config-dir={tmp_path}", "weighting=mine").err, "weighting names no _target_"
    )


def test_missing_config_folder_is_reported(scripts: Scripts) -> None:
    ran = scripts.run(f"--config-dir={CONFIGS}/nope", "experiment=small")
    assert ran.code == 1
    assert_one_sentence(ran.err, "not found")
