"""Refuses optimizers and schedulers that cannot be built, or do not work with the steps of a run."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from multitask.errors import ConfigError, on_one_line
from multitask.lightning.module import MultiLossModule
from multitask.randomness import seeded_apart
from multitask.run.devices import several_processes
from multitask.weighting.base import JacobianMethod

# Enough steps for optimizers that evaluate the loss again only every few steps.
_STEPS = 12


def check_optimizer(config: DictConfig, module: MultiLossModule, sparse: Sequence[str]) -> None:
    """Build optimizer and scheduler once, and try the optimizer on a small problem.

    An optimizer is refused if it needs a closure that manual optimization does not provide, or dense gradients where
    those of the parameters ``sparse`` are not.
    """
    if "_target_" not in config.optimizer:
        return  # the module's own, which may need the Trainer
    name = str(config.optimizer._target_).rpartition(".")[2]
    make = instantiate(config.optimizer, _partial_=True, _convert_="all")
    try:
        module.configure_optimizers()
    except (TypeError, ValueError) as error:
        if [*module.weighting.parameters()] and _takes_groups(make, 1) and not _takes_groups(make, 2):
            raise ConfigError(
                f"optimizer={name} takes one group of parameters, and weighting={config.method} has a second "
                "with its own; choose another optimizer, or a weighting without parameters such as "
                "weighting=weighted_sum."
            ) from error
        raise ConfigError(
            f"optimizer and scheduler cannot be built: {on_one_line(error)}; check their keys."
        ) from error
    if wants := _closure_wanted(make):
        wants = f"optimizer={name} {wants} in a step"
        several = several_processes(config) and module.labels_can_be_missing
        if several or not module.automatic_optimization:
            raise ConfigError(f"{wants}, and {_filled_once(config, module)}")
        if str(config.trainer.precision).startswith("16"):
            raise ConfigError(
                f"{wants}, which trainer.precision={config.trainer.precision} cannot scale; choose another optimizer, "
                "or trainer.precision=32-true."
            )
    if sparse:
        _check_sparse(config, module, make, name, sparse[0])


def _takes_groups(make: Callable[..., Optimizer], count: int) -> bool:
    try:
        make([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(count)])
    except (TypeError, ValueError):
        return False
    return True


def _filled_once(config: DictConfig, module: MultiLossModule) -> str:
    """Return why the gradients are computed once per step, before the optimizer's step, and what to change."""
    batches = config.trainer.accumulate_grad_batches
    if isinstance(module.weighting, JacobianMethod):
        once = f"weighting={config.method} computes gradients once"
        instead = "a scalarization such as weighting=weighted_sum with trainer.accumulate_grad_batches=1"
    elif batches > 1:
        once = f"trainer.accumulate_grad_batches={batches} computes gradients once"
        instead = "trainer.accumulate_grad_batches=1"
    else:
        once = "several processes compute gradients once if labels can be missing"
        instead = "trainer.devices=1"
    return f"{once}; choose another optimizer, or {instead}."


def _closure_wanted(make: Callable[..., Optimizer]) -> str:
    """Return what an optimizer needs a closure for besides gradients; empty if nothing.

    Manual optimization fills the gradients first, and passes an empty closure, or none with a loss scaler.
    """
    tried = _tried(make, lambda optimizer, closure: optimizer.step(closure))
    if isinstance(tried, Exception):
        return ""
    parameter, evaluations = tried
    if evaluations > _STEPS:
        return "computes the loss several times"
    for take in (_empty_closure, _no_closure):
        found = _tried(make, take)
        if isinstance(found, Exception) or not found[0].allclose(parameter, rtol=0, atol=0, equal_nan=True):
            return "needs the loss"
    return ""


def _empty_closure(optimizer: Optimizer, closure: Callable[[], Tensor]) -> None:
    closure()
    optimizer.step(lambda: None)  # type: ignore[arg-type, return-value]


def _no_closure(optimizer: Optimizer, closure: Callable[[], Tensor]) -> None:
    closure()
    optimizer.step()


def _tried(
    make: Callable[..., Optimizer],
    take: Callable[[Optimizer, Any], Any],
    sparse: bool = False,
) -> tuple[Tensor, int] | Exception:
    """Return a small matrix after some steps and how often they evaluated the loss, or the error of a step."""
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
    scale = torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        loss = (scale * parameter.square()).sum()
        (gradient,) = torch.autograd.grad(loss, parameter)
        parameter.grad = gradient.to_sparse(1) if sparse else gradient
        return loss

    with seeded_apart(0, parameter.device):
        try:
            optimizer = make([{"params": [parameter]}])
            for _ in range(_STEPS):
                take(optimizer, closure)
        except Exception as error:  # optimizers may raise anything
            return error
    return parameter.detach(), evaluations


def _check_sparse(
    config: DictConfig,
    module: MultiLossModule,
    make: Callable[..., Optimizer],
    optimizer: str,
    parameter: str,
) -> None:
    has = f"{parameter} has sparse gradients"
    advice = "set sparse=false where the layer is made"
    if not module.needs_no_gramian:
        raise ConfigError(f"{has}, and weighting={config.method} needs dense ones; {advice}.")
    if config.trainer.gradient_clip_val:
        raise ConfigError(
            f"{has}, which trainer.gradient_clip_val={config.trainer.gradient_clip_val} cannot clip; {advice}."
        )
    if several_processes(config):
        raise ConfigError(f"{has}, which several processes cannot add up; {advice}, or trainer.devices=1.")
    on_sparse, on_dense = (_tried(make, _no_closure, layout) for layout in (True, False))
    if isinstance(on_sparse, Exception) and not isinstance(on_dense, Exception):
        raise ConfigError(
            f"{has}, which optimizer={optimizer} cannot use ({on_one_line(on_sparse)}); {advice}, or use optimizer=sgd "
            "with optimizer.weight_decay=0."
        )
    if isinstance(on_dense, Exception) and not isinstance(on_sparse, Exception):
        raise ConfigError(
            f"optimizer={optimizer} cannot use the dense gradients of the other layers ({on_one_line(on_dense)}); "
            f"{advice}, or use optimizer=sgd."
        )
