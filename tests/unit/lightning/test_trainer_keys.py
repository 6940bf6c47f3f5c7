"""The Trainer's keys and Lightning's callbacks have the same effect in manual and automatic optimization."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import lr_scheduler

from multitask.data.base import Split
from multitask.module import MultiTaskModule
from multitask.weighting.base import JacobianMethod
from tests.conftest import Arrays, arrays, build
from tests.unit.weighting.members import FEW, NAMES, make, number_of_tasks

AUTOMATIC, MANUAL = False, True


class Validated(Arrays):
    """Arrays that are also the validation split."""

    def load(self) -> dict[str, Split]:
        return {"train": self.arrays, "val": self.arrays}


class Rates(Callback):
    """Records the learning rate of each batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def module_of(
    name: str, is_manual: bool, dtype: torch.dtype = torch.float64, norm: bool = False, **manual: Any
) -> MultiTaskModule:
    m = number_of_tasks(name)
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(6)] if norm else []
    trunk = nn.Sequential(nn.Linear(5, 6), *middle, nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
    method = make(name, m)
    if is_manual or isinstance(method, JacobianMethod):
        manual.setdefault("accumulate_grad_batches", 1)
    return build(method, tasks=m, trunk=trunk, dtype=dtype, **manual)


def run(
    module: MultiTaskModule,
    callbacks: Sequence[Callback] = (),
    epochs: int = 4,
    precision: str | None = "64-true",
    **trainer: Any,
) -> tuple[dict[str, Tensor], list[float]]:
    """Train for some epochs of four batches; return all parameters and buffers, and the learning rates."""
    rates = Rates()
    runner = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[rates, *callbacks],
        **{**module.trainer_keys, **trainer},
    )
    runner.fit(module, datamodule=Validated(arrays(len(module.names), dtype=module.dtype), batch_size=6))
    return values(module), rates.seen


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: v.detach().clone() for name, v in [*module.named_parameters(), *module.named_buffers()]}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", ["weighted_sum", "imtl_l", "gls"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping(name: str, algorithm: str) -> None:
    keys = {"gradient_clip_val": 0.02, "gradient_clip_algorithm": algorithm}
    automatic, _ = run(module_of(name, AUTOMATIC), **keys)
    manual, _ = run(module_of(name, MANUAL, **keys))
    assert_same(manual, automatic)
    free, _ = run(module_of(name, AUTOMATIC))
    assert not torch.allclose(free["trunk.0.weight"], automatic["trunk.0.weight"])


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_is_of_the_combined_gradient(algorithm: str) -> None:
    """A step of plain SGD is as long as the learning rate times the bound."""
    module = module_of("upgrad", MANUAL, gradient_clip_val=0.02, gradient_clip_algorithm=algorithm)
    before = torch.cat([p.detach().flatten() for p in module.parameters()])
    run(module, epochs=1, limit_train_batches=1)
    step = (torch.cat([p.detach().flatten() for p in module.parameters()]) - before) / 0.1
    size = step.norm() if algorithm == "norm" else step.abs().max()
    assert float(size) == pytest.approx(0.02, rel=1e-3)


SCHEDULERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "every other step": (lambda o: lr_scheduler.StepLR(o, 1, 0.5), {"interval": "step", "frequency": 2}),
    "every other epoch": (lambda o: lr_scheduler.StepLR(o, 1, 0.5), {"interval": "epoch", "frequency": 2}),
    "one cycle": (lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=16), {"interval": "step"}),
    "plateau": (
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1.0),
        {"monitor": "val/loss"},
    ),
    "plateau by steps": (
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1.0),
        {"monitor": "val/loss", "interval": "step", "frequency": 2},
    ),
}


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("case", SCHEDULERS)
def test_schedulers(case: str, window: int) -> None:
    scheduler, options = SCHEDULERS[case]
    found = []
    for is_manual in (AUTOMATIC, MANUAL):
        module = module_of("mean", is_manual, **({"accumulate_grad_batches": window} if is_manual else {}))
        module._scheduler, module.scheduler_options = scheduler, options
        found.append(run(module, **({} if is_manual else {"accumulate_grad_batches": window})))
    (automatic, rates), (manual, manual_rates) = found
    assert manual_rates == rates
    assert len(set(rates)) > 1
    assert_same(manual, automatic)


def test_a_plateau_by_steps_uses_the_latest_validation() -> None:
    """Every second batch is followed by a validation, which lowers the learning rate of the next batch."""
    module = module_of("upgrad", MANUAL)
    module._scheduler, module.scheduler_options = SCHEDULERS["plateau by steps"]
    _, rates = run(module, epochs=2, val_check_interval=2)
    assert rates == pytest.approx([0.1, 0.1, 0.1, 1e-2, 1e-3, 1e-3, 1e-3, 1e-4])


@pytest.mark.smoke(*FEW)
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_averaging_callbacks(name: str) -> None:
    """Lightning's EMA does not affect training, and ends at the average of the weights of all steps."""
    decay = 0.5
    plain = module_of(name, AUTOMATIC)
    average: list[dict[str, Tensor]] = []

    class ByHand(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            now = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
            old = average[-1] if average else now
            average.append({n: decay * old[n] + (1 - decay) * p for n, p in now.items()})

    run(plain, callbacks=[ByHand()], epochs=2)
    averaged, _ = run(module_of(name, AUTOMATIC), callbacks=[EMAWeightAveraging(decay=decay)], epochs=2)
    for key, value in average[-1].items():
        torch.testing.assert_close(averaged[key], value, rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize("norm", [False, True])
def test_swa_of_lightning(norm: bool) -> None:
    """With batch normalization, SWA passes over the data once more without taking steps."""
    swa = lambda: StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=2)  # noqa: E731
    automatic, rates = run(module_of("mean", AUTOMATIC, norm=norm), callbacks=[swa()], epochs=5)
    manual, manual_rates = run(module_of("mean", MANUAL, norm=norm), callbacks=[swa()], epochs=5)
    assert manual_rates == rates
    assert_same(manual, automatic)


def half(start: float) -> MixedPrecision:
    """Return 16-mixed precision with a loss scaler, as on a GPU."""
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=start))


@pytest.mark.smoke(*FEW)
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_precisions_agree_to_their_rounding(name: str) -> None:
    start = module_of(name, AUTOMATIC, torch.float32)
    before = values(deepcopy(start))
    exact, _ = run(start, epochs=1, precision="32-true")
    moved = sum(float((exact[k] - v).norm()) for k, v in before.items() if k.startswith(("trunk", "tasks")))
    for options, tolerance in (
        ({"precision": "bf16-mixed"}, 0.2),
        ({"precision": None, "plugins": half(2.0**10)}, 0.02),
    ):
        found, _ = run(module_of(name, AUTOMATIC, torch.float32), epochs=1, **options)  # type: ignore[arg-type]
        apart = sum(
            float((found[k] - v).norm()) for k, v in exact.items() if k.startswith(("trunk", "tasks"))
        )
        assert apart < tolerance * moved, options


@pytest.mark.smoke(*FEW)
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_overflows_is_skipped(name: str) -> None:
    """The loss scale falls; parameters and, for a Jacobian method, the combiner's state do not change."""
    module = module_of(name, AUTOMATIC, torch.float32)
    before = deepcopy(module.state_dict())
    precision = half(2.0**60)
    run(module, epochs=1, precision=None, plugins=precision, max_steps=2)
    assert precision.scaler.get_scale() < 2.0**60
    jacobian = isinstance(module.weighting, JacobianMethod)
    for key, value in module.state_dict().items():
        moves = key.startswith("_measurement") or (key.startswith("weighting") and not jacobian)
        if isinstance(value, Tensor) and not moves:
            torch.testing.assert_close(value, before[key], rtol=0.0, atol=0.0, equal_nan=True, msg=key)
    assert module.weighting.failures == 0


def test_an_overflow_in_a_head_skips_the_step_too() -> None:
    module = module_of("gradvac", MANUAL, torch.float32)
    module.by_name["t0"].head.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = deepcopy(module.weighting.state_dict())
    run(module, epochs=1, precision=None, plugins=half(2.0**10), max_steps=2)
    assert all(value.isfinite().all() for value in values(module).values())
    after = module.weighting.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
