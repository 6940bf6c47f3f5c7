"""Optimizers that need a closure or cannot use sparse gradients are found before the run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchjd
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from torchjd.aggregation import UPGradWeighting

from multitask.errors import ConfigError
from multitask.run.optimizer_checks import check_optimizer
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build, fit, regression
from tests.unit.weighting.members import make


class Sharp(torch.optim.SGD):
    """Requires a closure and evaluates it again at a nearby point."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        assert closure is not None, "needs a closure"
        super().step(closure)
        return super().step(closure)


class SharpAtWill(torch.optim.SGD):
    """Takes a plain step without a closure, and evaluates a given one at a nearby point."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if closure is None:
            return super().step()
        closure()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        away = [0.1 * p.grad for p in parameters]
        with torch.no_grad():
            for p, e in zip(parameters, away, strict=True):
                p.add_(e)
        self.zero_grad()
        closure()
        with torch.no_grad():
            for p, e in zip(parameters, away, strict=True):
                p.sub_(e)
        return super().step()


class SharpAtTimes(SharpAtWill):
    """Uses the closure in every fifth step only."""

    taken = 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        self.taken += 1
        return super().step(closure) if self.taken % 5 == 0 else torch.optim.SGD.step(self, closure)


class ByLoss(torch.optim.SGD):
    """Scales the step by the loss if the closure returns one."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else closure()
        if loss is not None:
            self.param_groups[0]["lr"] = 0.01 * float(loss.detach())
        return super().step()


class Clears(torch.optim.SGD):
    """Clears the gradients before it calls the closure."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if closure is not None:
            self.zero_grad()
        return super().step(closure)


class Noisy(torch.optim.SGD):
    """Draws noise, as in Langevin dynamics."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.add_(0.01 * torch.randn_like(p))
        return loss


def config(optimizer: str, **trainer: Any) -> Any:
    options = {
        "gradient_clip_val": None,
        "accumulate_grad_batches": 1,
        "devices": 1,
        "num_nodes": 1,
        "precision": "32-true",
        **trainer,
    }
    return OmegaConf.create(
        {"method": "the_method", "optimizer": {"_target_": optimizer, "lr": 0.1}, "trainer": options}
    )


@pytest.fixture
def scalarization() -> Any:
    return adapt(torchjd.scalarization.Mean())


CLOSURES = [
    "torch.optim.LBFGS",
    *(f"{__name__}.{n}" for n in ("Sharp", "SharpAtWill", "SharpAtTimes", "ByLoss", "Clears")),
]


@pytest.mark.parametrize("optimizer", CLOSURES)
def test_closure_requires_automatic_optimization(optimizer: str, scalarization: Any) -> None:
    check_optimizer(config(optimizer), build(scalarization), [])
    with pytest.raises(ConfigError, match=r"in a step, and weighting=the_method computes gradients once"):
        check_optimizer(config(optimizer), build(adapt(UPGradWeighting())), [])
    with pytest.raises(ConfigError, match=r"or trainer.accumulate_grad_batches=1"):
        check_optimizer(
            config(optimizer, accumulate_grad_batches=2), build(scalarization, accumulate_grad_batches=2), []
        )
    with pytest.raises(ConfigError, match=r"trainer.precision=16-mixed"):
        check_optimizer(config(optimizer, precision="16-mixed"), build(scalarization), [])


def test_closure_with_missing_labels_requires_one_process(scalarization: Any) -> None:
    heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(3)}
    check_optimizer(config("torch.optim.LBFGS"), build(scalarization, heads=heads), [])
    with pytest.raises(ConfigError, match=r"if labels can be missing.*or trainer.devices=1"):
        check_optimizer(config("torch.optim.LBFGS", devices=2), build(scalarization, heads=heads), [])


def test_optimizer_of_one_group_excludes_weightings_with_parameters() -> None:
    def built(name: str, optimizer: str) -> Any:
        made = build(make(name, 3), optimizer=partial(getattr(torch.optim, optimizer), lr=0.1))
        return check_optimizer(config(f"torch.optim.{optimizer}"), made, [])

    for name in ("uw", "imtl_l"):
        with pytest.raises(
            ConfigError, match=r"takes one group .*weighting=the_method has a second .*weighting=weighted_sum"
        ):
            built(name, "LBFGS")
        built(name, "SGD")
    built("gls", "LBFGS")


@pytest.mark.parametrize("weighting", [UPGradWeighting(), torchjd.scalarization.Mean()])
def test_own_optimizer_stops_at_its_second_closure_call(weighting: Any) -> None:
    """The model makes the optimizer, so that it is found in the first step."""
    module = build(adapt(weighting), optimizer=SharpAtWill, accumulate_grad_batches=2)
    module.configure_optimizers = lambda: SharpAtWill(module.parameters(), lr=0.1)
    with pytest.raises(
        MisconfigurationException, match="SharpAtWill computes the loss several times in a step"
    ):
        fit(module, Arrays(arrays(), batch_size=8), steps=2)


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adadelta", "NAdam", "Rprop", f"{__name__}.Noisy"]
)
def test_other_optimizers_pass(name: str) -> None:
    check_optimizer(
        config(name if "." in name else f"torch.optim.{name}"), build(adapt(UPGradWeighting())), []
    )


def test_sparse_gradients_are_rejected_where_unsupported(scalarization: Any) -> None:
    sparse, automatic = ["trunk.table.weight"], build(scalarization)
    check_optimizer(config("torch.optim.SGD"), automatic, sparse)
    check_optimizer(config("torch.optim.SGD"), build(scalarization, accumulate_grad_batches=2), sparse)
    for module, optimizer, trainer, message in (
        (build(adapt(UPGradWeighting())), "SGD", {}, "weighting=the_method needs dense ones"),
        (automatic, "SGD", {"gradient_clip_val": 1.0}, "trainer.gradient_clip_val=1.0 cannot clip"),
        (automatic, "SGD", {"devices": 2}, "several processes cannot add up"),
        (automatic, "Adam", {}, "optimizer=Adam cannot use"),
        (automatic, "SparseAdam", {}, "optimizer=SparseAdam cannot use the dense gradients"),
    ):
        with pytest.raises(ConfigError, match=f"{message}.*set sparse=false"):
            check_optimizer(config(f"torch.optim.{optimizer}", **trainer), module, sparse)
