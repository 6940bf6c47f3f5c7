"""Builds a user's own module from the config and checks it before training."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from multitask.errors import ConfigError, on_one_line
from multitask.lightning.module import MultiLossModule
from multitask.lightning.overrides import replaced_hook
from multitask.lightning.probing import unobtrusive
from multitask.run.combiner import train_with
from multitask.run.data import Data, OtherData, bare_trainer, first_batch, temporary_trainer, training_data
from multitask.run.initialization import make_model, seeded
from multitask.run.names import check_losses


def build_own(config: DictConfig, data: Data) -> MultiLossModule:
    """Build the module with its combiner; losses that it does not name get their names from one batch."""
    target = config.model._target_
    module = make_model(config)
    if not isinstance(module, MultiLossModule):
        raise ConfigError(
            f"model._target_={target} gives a {type(module).__name__}; give a class derived from "
            "multitask.MultiLossModule."
        )
    # Hooks that replace those of MultiLossModule, and with them telemetry, clipping or resume.
    if complaint := replaced_hook(type(module), MultiLossModule):
        raise ConfigError(f"model: {complaint}")
    check_own_optimizer(config, module)
    batch = first_batch(data, next(iter(data.splits)), module)
    found = look(config, module, data, batch)
    module.names = module.names or list(found)
    check_losses(module.names)
    train_with(config, module, {})
    if is_overridden("validation_step", module, MultiLossModule) and "val" in data.splits:
        module.seen_keys = _validated_keys(module, data)
    return module


def look(config: DictConfig, module: MultiLossModule, data: Data, batch: Any) -> dict[str, Tensor]:
    """Return a batch's losses by name, without side effects except that lazy layers take their widths."""
    try:
        with temporary_trainer(module, training_data(data)), unobtrusive(module), torch.enable_grad():
            losses: Mapping[str, Any] = seeded(config.seed, "model", lambda: module.losses(batch))
    except Exception as error:  # the user's own code
        raise ConfigError(
            f"model: losses(batch) of {type(module).__name__} fails on a first batch ({type(error).__name__}: "
            f"{on_one_line(error)}); fix it, or the data."
        ) from error
    if not isinstance(losses, Mapping) or not losses:
        raise ConfigError(
            f"model: losses(batch) of {type(module).__name__} gives a {type(losses).__name__} of "
            f"{len(losses) if isinstance(losses, Mapping) else 'no'} names; return the mean losses by name, "
            "{name: loss} or {name: (loss, count)}."
        )
    found = {name: loss[0] if isinstance(loss, tuple) else loss for name, loss in losses.items()}
    for name, loss in found.items():
        if not isinstance(loss, Tensor) or loss.ndim:
            given = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(f"model: the loss '{name}' is {given} and must be one number; return its mean.")
    return found


def check_own_optimizer(config: DictConfig, module: MultiLossModule) -> None:
    """Refuse a config's optimizer if the module defines its own, and ``optimizer=own`` if it does not."""
    name = type(module).__name__
    if not is_overridden("configure_optimizers", module, MultiLossModule):
        if "_target_" not in config.optimizer:
            raise ConfigError(
                f"optimizer=own is what configure_optimizers makes, and {name} defines none; choose another, such as "
                "optimizer=adam."
            )
        return
    for key in ("optimizer._target_", "scheduler._target_", "weighting.learning_rate", "parameter_groups"):
        if (value := OmegaConf.select(config, key)) is not None and value != {}:
            advice = (
                "set optimizer=own scheduler=none, or remove the method"
                if "_target_" in key
                else "leave it null"
            )
            raise ConfigError(
                f"{key}={value} would do nothing, since {name} has a configure_optimizers of its own; {advice}."
            )


def _validated_keys(module: MultiLossModule, data: Data) -> set[str]:
    """Return the keys that the module's own validation logs, found by validating one batch."""
    trainer = bare_trainer(limit_val_batches=1, inference_mode=False)
    with temporary_trainer(module, training_data(data)), unobtrusive(module, train=True):
        found = trainer.validate(
            module, data.module if isinstance(data, OtherData) else data.loader("val"), verbose=False
        )
    module.validated = {}
    return {key for one in found for key in one}
