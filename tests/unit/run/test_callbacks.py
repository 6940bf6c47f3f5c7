"""Unsupported callbacks are rejected before the run, and forbidden changes stop it."""

from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from omegaconf import OmegaConf
from torchjd.aggregation import UPGradWeighting

from multitask.callbacks.fixed import Fixed
from multitask.callbacks.frozen import Frozen
from multitask.errors import ConfigError
from multitask.run.callbacks import build_callbacks
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build, fit
from tests.integration.unfreeze import Finetuning

LIGHTNING = "lightning.pytorch.callbacks"


class Own(BatchSizeFinder):
    """A user's subclass of a rejected callback."""


def config(metric: str | None = None, ckpt_path: str | None = None, **callback: Any) -> Any:
    return OmegaConf.create(
        {
            "method": "upgrad",
            "selection": {"metric": metric},
            "ckpt_path": ckpt_path,
            "callbacks": {"mine": callback, "none": None},
            "trainer": {"enable_progress_bar": True},
        }
    )


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (f"{LIGHTNING}.BatchSizeFinder", {}, "callbacks.mine .* set data.batch_size"),
        (f"{__name__}.Own", {}, "callbacks.mine .* set data.batch_size"),
        (f"{LIGHTNING}.LearningRateFinder", {}, "callbacks.mine .* set optimizer.lr"),
        (
            f"{LIGHTNING}.GradientAccumulationScheduler",
            {"scheduling": {0: 2}},
            "callbacks.mine .* set trainer.accumulate_grad_batches",
        ),
        (f"{LIGHTNING}.ModelPruning", {"pruning_fn": "l1_unstructured"}, "callbacks.mine .* after the run"),
        (f"{LIGHTNING}.BackboneFinetuning", {}, "callbacks.mine .* subclass"),
        (f"{LIGHTNING}.SpikeDetection", {}, "callbacks.mine .* remove it"),
        ("torch.nn.Identity", {}, "callbacks.mine is a Identity"),
    ],
)  # fmt: skip
def test_unsupported_callback_is_rejected(target: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_callbacks(config(_target_=target, **options), automatic=False)


def test_stochastic_weight_averaging_excludes_selection_and_resume() -> None:
    swa = {"_target_": f"{LIGHTNING}.StochasticWeightAveraging", "swa_lrs": 0.1}
    assert len(build_callbacks(config(**swa), automatic=True)) == 1
    with pytest.raises(ConfigError, match=r"set selection.metric=null"):
        build_callbacks(config("val/loss", **swa), automatic=True)
    with pytest.raises(ConfigError, match="start the run again without ckpt_path"):
        build_callbacks(config(ckpt_path="last.ckpt", **swa), automatic=True)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"{LIGHTNING}.RichProgressBar", "callbacks.mine and callbacks.other are progress bars"),
        (f"{LIGHTNING}.ModelCheckpoint", "callbacks.mine and callbacks.other .* set callbacks.other=null"),
        (f"{LIGHTNING}.LearningRateMonitor", None),
    ],
)
def test_duplicate_callbacks(target: str, message: str | None) -> None:
    both = config(_target_=target)
    both.callbacks.other = {"_target_": target}
    if message is None:
        assert len(build_callbacks(both, automatic=True)) == 2
        return
    with pytest.raises(ConfigError, match=message):
        build_callbacks(both, automatic=True)
    if "ProgressBar" in target:
        both.trainer.enable_progress_bar = False  # which removes all progress bars
        assert len(build_callbacks(both, automatic=True)) == 2


def test_callback_that_changes_a_trainer_key_stops_the_run() -> None:
    class Changes(Callback):
        def __init__(self, key: str, value: Any) -> None:
            self.key, self.value = key, value

        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            setattr(trainer, self.key, self.value)

    for key, value in (("accumulate_grad_batches", 2), ("gradient_clip_val", 0.5)):
        module = build(adapt(UPGradWeighting()))
        before = [p.detach().clone() for p in module.parameters()]
        with pytest.raises(ConfigError, match=f"set trainer.{key}"):
            fit(module, Arrays(arrays()), callbacks=[Changes(key, value), Fixed({})])
        assert all(map(torch.equal, before, module.parameters()))


def test_lightning_finetuning_trains_unfrozen_layers_at_its_learning_rate() -> None:
    module = build(adapt(UPGradWeighting()))
    rates: list[dict[str, float]] = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            names = {p: name for name, p in pl_module.named_parameters()}
            (optimizer,) = trainer.optimizers
            rates.append({names[p]: g["lr"] for g in optimizer.param_groups for p in g["params"]})

    first = module.trunk[0].weight.detach().clone()  # type: ignore[index]
    fit(
        module,
        Arrays(arrays()),
        steps=2,  # one epoch each
        callbacks=[Finetuning(epoch=1, rate=0.003), Watch(), Frozen()],
    )
    assert "trunk.0.weight" not in rates[0]
    assert rates[1] == {**dict.fromkeys(rates[1], 0.1), "trunk.0.weight": 0.003, "trunk.0.bias": 0.003}
    assert not torch.equal(module.trunk[0].weight, first)  # type: ignore[index]
