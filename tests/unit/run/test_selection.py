"""Validations in which a task has no labels or a metric has no value."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as theirs
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanSquaredError, Metric

from multitask.callbacks.checkpoints import Checkpoints
from multitask.callbacks.stopping import EarlyStopping
from multitask.data.base import Split
from multitask.lightning.metric_keys import to_keys
from multitask.module import MultiTaskModule
from multitask.task.measurement import Measurement
from multitask.task.task import Task
from tests.conftest import Arrays, arrays, build, regression
from tests.unit.weighting.members import make

NAN = math.nan


class Scripted(Metric):
    """Returns the given values in turn, one per validation."""

    full_state_update = False

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        pass

    def compute(self) -> Tensor:
        return torch.tensor(next(self.values))


class Validated(Arrays):
    """``Arrays`` with a validation split."""

    def __init__(self, train: dict[str, Tensor], val: dict[str, Tensor]) -> None:
        super().__init__(train, batch_size=8)
        self.val = val

    def load(self) -> dict[str, Split]:
        return {"train": self.arrays, "val": self.val}


class Recorder(Callback):
    """Records the metrics after each validation and the learning rate of each epoch."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.rates: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def scripted(values: list[float], **options: Any) -> MultiTaskModule:
    heads = {"t0": regression("t0", metrics={"m": Scripted(values)}), "t1": regression("t1")}
    return build(make("mean", 2), heads=heads, **options)


def fit(module: MultiTaskModule, folder: Path, epochs: int, *callbacks: Callback, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        precision="64-true",
        logger=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=any(
            isinstance(each, Checkpoints | theirs.ModelCheckpoint) for each in callbacks
        ),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, datamodule=Validated(arrays(2), arrays(2)))
    return trainer


def test_means_are_over_labelled_tasks() -> None:
    tasks = {
        name: Task(nn.Identity(), nn.MSELoss(), {"mse": MeanSquaredError()}, name, missing=True)
        for name in "abc"
    }
    measured = Measurement(tasks)
    for values in ([1.0, NAN], [3.0, 5.0]):
        batch = {"a": torch.tensor(values), "b": torch.full((2,), NAN), "c": torch.tensor([2.0, 2.0])}
        zeros = torch.zeros(2)
        measured.update(tasks, [task(zeros, batch) for task in tasks.values()])
    metrics = measured.finish(tasks)
    a, c = (1 + 9 + 25) / 3, 4.0
    assert metrics == pytest.approx({("a", "loss"): a, ("a", "mse"): a, ("c", "loss"): c, ("c", "mse"): c})
    curves = to_keys(metrics, "val")
    assert curves["val/loss"] == curves["val/mean/mse"] == pytest.approx((a + c) / 2)
    assert measured.finish(tasks) == {}  # and the state is reset


def test_nan_loss_is_kept() -> None:
    task = Task(nn.Identity(), nn.MSELoss(), {"mse": MeanSquaredError()}, "a")
    measured = Measurement(["a"])
    for prediction in (torch.ones(2), torch.full((2,), NAN)):
        measured.update({"a": task}, [task(prediction, {"a": torch.zeros(2)})])
    metrics = measured.finish({"a": task})
    assert metrics.keys() == {("a", "loss"), ("a", "mse")}
    assert all(map(math.isnan, metrics.values()))


class NeedsMany(MeanSquaredError):
    """Cannot be computed from fewer than 100 values."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def compute(self) -> Tensor:
        if self.total < 100:
            raise self.error("too few")
        return super().compute()


@pytest.mark.parametrize("error", [ValueError, RuntimeError, IndexError, ZeroDivisionError])
def test_metric_that_cannot_be_computed_does_not_affect_others(error: type[Exception]) -> None:
    metrics = {"many": NeedsMany(error), "mse": MeanSquaredError()}
    task = Task(nn.Identity(), nn.MSELoss(), metrics, "a")
    measured = Measurement(["a"])
    for count, expected in ((2, {"loss", "mse"}), (120, {"loss", "many", "mse"})):
        measured.update({"a": task}, [task(torch.ones(count), {"a": torch.zeros(count)})])
        with (
            pytest.warns(UserWarning, match=r"tasks\.a\.metrics\.many .*omitted: too few\.")
            if count == 2
            else nullcontext()
        ):
            values = measured.finish({"a": task})
        assert {metric for _, metric in values} == expected
        assert set(values.values()) == {1.0}


def test_metric_without_a_value_is_nan_and_keeps_no_old_value(tmp_path: Path) -> None:
    recorder = Recorder()
    module = scripted([1.0, NAN, 3.0])
    assert module.validation_keys == {"val/loss", "val/loss/t0", "val/loss/t1", "val/t0/m", "val/mean/m"}
    fit(module, tmp_path, 3, recorder)
    found = [metrics["val/t0/m"] for metrics in recorder.metrics]
    assert found == pytest.approx([1.0, NAN, 3.0], nan_ok=True)
    assert all(math.isfinite(metrics["val/loss"]) for metrics in recorder.metrics)
    assert module.validated["val/t0/m"] == 3.0


def test_best_epoch_is_selected_among_finite_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(str(tmp_path), "val/t0/m")
    fit(scripted([NAN, 3.0, NAN, 1.0, -math.inf, 2.0, NAN]), tmp_path, 7, checkpoints)
    assert float(checkpoints.best_model_score) == 1.0
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 3
    assert capsys.readouterr().err.splitlines() == [
        "warning: selection.metric=val/t0/m has no finite value in epoch 1, which is skipped."
    ]


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ([NAN] * 6, 6),
        ([1.0, NAN, NAN, NAN, 2.0, 3.0, 4.0], 6),  # patience counts validations with a value
        ([NAN, 3.0, 2.0, NAN, 1.0, 0.0], 6),
        ([1.0, 2.0, NAN, 3.0, 0.0], 4),
        ([1.0, math.inf, 0.0], 2),
    ],
)
def test_early_stopping_counts_validations_with_a_value(
    values: list[float], epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(scripted(values), tmp_path, len(values), EarlyStopping("val/t0/m", patience=2))
    assert trainer.current_epoch == epochs
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: callbacks.early_stopping.monitor=val/t0/m ")


@pytest.mark.parametrize("by_hand", [False, True])
def test_plateau_scheduler_waits_for_values(
    by_hand: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    module = scripted(
        [NAN, 3.0, NAN, 4.0, NAN, 2.0, 1.0, 0.0], **({"accumulate_grad_batches": 1} if by_hand else {})
    )
    module._scheduler = lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    module.scheduler_options = {"monitor": "val/t0/m"}
    fit(module, tmp_path, 8, recorder)
    assert recorder.rates == [0.1] * 4 + [0.05] * 4
    assert capsys.readouterr().err.splitlines() == [
        "warning: scheduler.monitor=val/t0/m has no finite value in epoch 1; the scheduler waits for one."
    ]


def test_lightning_callbacks_ignore_missing_values(tmp_path: Path) -> None:
    best = theirs.ModelCheckpoint(tmp_path, "{epoch}", monitor="val/t0/m")
    fit(scripted([2.0, NAN, 1.0, NAN]), tmp_path, 4, best)
    assert float(best.best_model_score) == 1.0
    assert best.best_model_path.endswith("epoch=2.ckpt")
    stopping = theirs.EarlyStopping("val/t0/m", patience=1)
    assert fit(scripted([2.0, NAN, 1.0]), tmp_path, 3, stopping).current_epoch == 2
