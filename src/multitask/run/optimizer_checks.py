"""Refuses optimizers and schedulers that cannot be made, or cannot take the steps of a run."""

from collections.abc import Callable, Sequence

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from multitask.errors import ConfigError
from multitask.lightning.module import MultiLossModule
from multitask.run.combiner import several_processes


def check_optimizer(config: DictConfig, module: MultiLossModule, sparse: Sequence[str]) -> None:
    """Make optimizer and scheduler once, and try the optimizer on numbers of its own.

    Args:
        config: The whole config.
        module: The module.
        sparse: The parameters whose gradients are sparse.

    Raises:
        ConfigError: If an argument is not taken, the optimizer wants a closure that a step by hand has
            not, or sparse gradients cannot be used.
    """
    if "_target_" not in config.optimizer:
        return  # the module's own, which may ask the Trainer how long it trains
    try:
        module.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer and scheduler cannot be made: {' '.join(str(error).split())}; check their keys."
        ) from error
    name = str(config.optimizer._target_).rpartition(".")[2]
    make = instantiate(config.optimizer, _partial_=True, _convert_="all")
    if _wants_closure(make):
        wants = f"optimizer={name} computes the loss several times in a step"
        if not module.automatic_optimization:
            raise ConfigError(
                f"{wants}, and weighting={config.method} fills the gradients once, as do micro-batches and tasks with "
                "missing=true; choose another optimizer, or weighting=weighted_sum with "
                "trainer.accumulate_grad_batches=1."
            )
        if str(config.trainer.precision).startswith("16"):
            raise ConfigError(
                f"{wants}, which trainer.precision={config.trainer.precision} cannot scale; choose another optimizer, "
                "or trainer.precision=32-true."
            )
    if sparse:
        _check_sparse(config, module, make, name, sparse[0])


def _wants_closure(make: Callable[..., Optimizer]) -> bool:
    """Return whether a step fails without a closure and works with one."""
    return _fails(make) is not None and _fails(make, lambda: 0.0) is None


def _fails(
    make: Callable[..., Optimizer], closure: Callable[[], float] | None = None, *, sparse: bool = False
) -> Exception | None:
    """Return what goes wrong in a step on a small matrix, ``None`` where nothing does."""
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.zeros(2, 2).to_sparse(1) if sparse else torch.zeros(2, 2)
    try:
        optimizer = make([{"params": [parameter]}])
        if closure is None:
            optimizer.step()
        else:
            optimizer.step(closure)
    except Exception as error:  # any optimizer of the user's own
        return error
    return None


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
    error = _fails(make, sparse=True)
    if error is not None and _fails(make) is None:
        raise ConfigError(
            f"{has}, which optimizer={optimizer} cannot use ({' '.join(str(error).split())}); {advice}, or take "
            "optimizer=sgd with optimizer.weight_decay=0."
        )
    if error is None and (failure := _fails(make)) is not None:
        raise ConfigError(
            f"optimizer={optimizer} cannot use the dense gradients of the other layers "
            f"({' '.join(str(failure).split())}); {advice}, or take optimizer=sgd."
        )
