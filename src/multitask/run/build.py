"""Builds the objects of a run from its config."""

from inspect import signature
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from multitask.callbacks.checkpoints import Checkpoints
from multitask.callbacks.fixed import Fixed
from multitask.callbacks.frozen import Frozen
from multitask.callbacks.interruption import Interruption
from multitask.callbacks.recipe import Recipe
from multitask.callbacks.seeding import StepSeed
from multitask.data.base import DataModule
from multitask.errors import ConfigError, on_one_line
from multitask.lightning.curves import MetricsCsv
from multitask.lightning.module import MultiLossModule
from multitask.module import MultiTaskModule
from multitask.run.callbacks import build_callbacks
from multitask.run.combiner import check_compiled, train_with
from multitask.run.data import Data, OtherData, check_batches, first_batch
from multitask.run.devices import processes, several_processes
from multitask.run.initialization import batches_of_run, check_batch, fit_targets, initialize, make_model
from multitask.run.model_choice import is_own
from multitask.run.own_model import build_own
from multitask.run.resolvers import plain
from multitask.run.sharding import check_strategy
from multitask.run.sharing import shared_in
from multitask.run.targets import imported


def build_data(config: DictConfig) -> Data:
    """Build the data module and load its splits; refuse one without examples, and keys that it does not support."""
    options = plain(config.data)
    made = imported("data._target_", options["_target_"])
    ours = isinstance(made, type) and issubclass(made, DataModule)
    apart = {
        key: options.pop(key)
        for key in ("drop_last", "collate_fn")
        if key in options and (ours or key not in signature(made).parameters)
    }
    data = instantiate(options, _convert_="all")
    if not isinstance(data, DataModule):
        if not isinstance(data, LightningDataModule):
            raise ConfigError(
                f"data._target_={options['_target_']} gives a {type(data).__name__}; give a LightningDataModule."
            )
        for key, value in apart.items():
            if value:
                raise ConfigError(
                    f"data.{key}={value} is a key of multitask.data.base.DataModule, and {type(data).__name__} is "
                    f"none; leave data.{key} out, and handle it in train_dataloader."
                )
        other = OtherData(data)
        other.setup()
        return other
    data.drop_last = bool(apart.get("drop_last"))
    if apart.get("collate_fn"):
        data.collate_fn = imported("data.collate_fn", apart["collate_fn"])
    data.setup()
    if not data.splits:
        raise ConfigError("data has no examples at all; check data.path and data.split.")
    check_batches(data, processes(config))
    return data


def build_module(config: DictConfig, data: Data) -> MultiLossModule:
    """Build the model with its combiner, optimizer and scheduler."""
    check_strategy(config)
    if is_own(config):
        return build_own(config, data)
    module: MultiTaskModule = make_model(config)
    tasks: dict[str, Any] = dict(module.tasks.items())
    if not (module.by_name or module.terms):
        raise ConfigError(
            f"no task has a head, only penalties: {', '.join(tasks)}; add one with a head, such as multi_mnist/left."
        )
    check_compiled(config, tasks)
    batch = first_batch(data, next(iter(data.splits)), module)
    check_batch(batch, module.inputs)
    fit_targets(module.by_name, data, batches_of_run(config))
    initialize(module, batch, config.seed, data.splits)
    train_with(config, module, tasks, shared=shared_in(module, batch) if config.compile else None)
    if config.compile:
        module.compile_trunk()
    return module


def build_trainer(
    config: DictConfig, folder: Path, automatic: bool, unused: bool = False
) -> tuple[Trainer, Interruption]:
    """Build the Trainer with its callbacks and loggers.

    The CSV logger, the per-step seed and the signal handler are always included: readable records and exact resume
    depend on them.

    ``automatic``: whether Lightning's automatic optimization is used; ``unused``: whether some trained parameters are
    reached by no loss.
    """
    options = instantiate(config.trainer, _convert_="all")
    window = options["accumulate_grad_batches"]
    if unused and automatic and several_processes(config) and options["strategy"] in ("auto", "ddp"):
        # Otherwise DistributedDataParallel waits for the gradients of unused parameters.
        options["strategy"] = "ddp_find_unused_parameters_true"
    chosen = build_callbacks(config, automatic)
    if not options["enable_progress_bar"]:
        chosen = [callback for callback in chosen if not isinstance(callback, ProgressBar)]
    checkpoints = next((callback for callback in chosen if isinstance(callback, Checkpoints)), None)
    interruption = Interruption(checkpoints, window)
    options["enable_model_summary"] = False  # the run prints its own summary
    loggers: list[Logger] = [MetricsCsv(folder)]
    loggers += [instantiate(node, _convert_="all") for node in (config.logger or {}).values() if node]
    try:
        trainer = Trainer(
            **options,
            # The last two run after the config's callbacks, and see what those changed.
            callbacks=[
                StepSeed(config.seed),
                Recipe(plain(config)),
                interruption,
                *chosen,
                Frozen(),
                Fixed(options if automatic else {}),
            ],
            logger=loggers,
            default_root_dir=folder,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in chosen),
        )
    except RuntimeError as error:  # two callbacks with the same state key
        raise ConfigError(f"callbacks: {on_one_line(error)}") from error
    return trainer, interruption
