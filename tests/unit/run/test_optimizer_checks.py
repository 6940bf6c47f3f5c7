"""Optimizers are tried before the run: those that want a closure, and those that sparse gradients stop."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchjd
from omegaconf import OmegaConf
from torchjd.aggregation import UPGradWeighting

from multitask.errors import ConfigError
from multitask.run.optimizer_checks import check_optimizer
from multitask.weighting.adapter import adapt
from tests.conftest import build


class Sharp(torch.optim.SGD):
    """Calls the closure a second time at a point nearby, and so cannot do without."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        assert closure is not None, "needs a closure"
        super().step(closure)
        return super().step(closure)


def config(optimizer: str, **trainer: Any) -> Any:
    options = {"gradient_clip_val": None, "devices": 1, "num_nodes": 1, "precision": "32-true", **trainer}
    return OmegaConf.create(
        {"method": "the_method", "optimizer": {"_target_": optimizer, "lr": 0.1}, "trainer": options}
    )


@pytest.fixture
def scalarization() -> Any:
    return adapt(torchjd.scalarization.Mean())


CLOSURES = ["torch.optim.LBFGS", f"{__name__}.Sharp"]


@pytest.mark.parametrize("optimizer", CLOSURES)
def test_a_closure_goes_with_automatic_optimization_alone(optimizer: str, scalarization: Any) -> None:
    check_optimizer(config(optimizer), build(scalarization), [])
    for module in (build(adapt(UPGradWeighting())), build(scalarization, accumulate_grad_batches=2)):
        with pytest.raises(ConfigError, match="weighting=the_method fills the gradients once"):
            check_optimizer(config(optimizer), module, [])
    with pytest.raises(ConfigError, match=r"trainer.precision=16-mixed"):
        check_optimizer(config(optimizer, precision="16-mixed"), build(scalarization), [])


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adadelta", "NAdam", "Rprop"])
def test_other_optimizers_go_with_every_weighting(name: str) -> None:
    check_optimizer(config(f"torch.optim.{name}"), build(adapt(UPGradWeighting())), [])


def test_sparse_gradients(scalarization: Any) -> None:
    sparse, automatic = ["trunk.table.weight"], build(scalarization)
    check_optimizer(config("torch.optim.SGD"), automatic, sparse)
    check_optimizer(config("torch.optim.SGD"), build(scalarization, accumulate_grad_batches=2), sparse)
    for module, optimizer, trainer, says in (
        (build(adapt(UPGradWeighting())), "SGD", {}, "weighting=the_method needs dense ones"),
        (automatic, "SGD", {"gradient_clip_val": 1.0}, "trainer.gradient_clip_val=1.0 cannot clip"),
        (automatic, "SGD", {"devices": 2}, "several processes cannot add up"),
        (automatic, "Adam", {}, "optimizer=Adam cannot use"),
        (automatic, "SparseAdam", {}, "optimizer=SparseAdam cannot use the dense gradients"),
    ):
        with pytest.raises(ConfigError, match=f"{says}.*set sparse=false"):
            check_optimizer(config(f"torch.optim.{optimizer}", **trainer), module, sparse)
