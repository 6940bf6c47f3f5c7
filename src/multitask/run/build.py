"""From a config to the objects of a run."""

from collections.abc import Container
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import Tensor

from multitask.callbacks.checkpoints import Checkpoints
from multitask.callbacks.fixed import Fixed
from multitask.callbacks.frozen import Frozen
from multitask.callbacks.interruption import Interruption
from multitask.callbacks.seeding import StepSeed
from multitask.data.base import DataModule
from multitask.module import AnyTask, MultiTaskModule
from multitask.penalty import Penalty
from multitask.run.batches import check_batches, first_batch
from multitask.run.callbacks import build_callbacks
from multitask.run.combiner import (
    build_combiner,
    check_compiled,
    check_strategy,
    processes,
    several_processes,
    step_options,
)
from multitask.run.curves import MetricsCsv
from multitask.run.errors import ConfigError
from multitask.run.initialization import check_penalties, fit_targets, initialize, seeded
from multitask.run.loss_checks import check_batch_losses
from multitask.run.resolvers import plain
from multitask.run.sharing import shared_in
from multitask.task import Task


def build_data(config: DictConfig) -> DataModule:
    """Make the DataModule and load its splits.

    Raises:
        ConfigError: If there is not a single example.
    """
    options = plain(config.data)
    drop_last = bool(options.pop("drop_last", False))
    data: DataModule = instantiate(options, _convert_="all")
    data.drop_last = drop_last
    data.setup()
    if not data.splits:
        raise ConfigError("data has no examples at all; check data.path and data.split.")
    check_batches(data, processes(config))
    return data


def build_module(config: DictConfig, data: DataModule) -> MultiTaskModule:
    """Make trunk, tasks and combiner, and find the widths of lazy layers on a first batch.

    Each part draws its initial values from a seed of its own name, so that a task starts the same
    whatever other tasks there are.

    Raises:
        ConfigError: If no task has a head, or a part cannot take the data.
    """
    trunk = seeded(config.seed, "trunk", lambda: instantiate(config.trunk, _convert_="all"))
    tasks: dict[str, AnyTask] = {
        name: seeded(config.seed, name, partial(instantiate, node, _convert_="all"))
        for name, node in config.tasks.items()
    }
    if all(isinstance(task, Penalty) for task in tasks.values()):
        raise ConfigError(
            f"no task but {', '.join(tasks)}, of parameters alone; choose one with a head, such as multi_mnist/left."
        )
    check_compiled(config, tasks)
    fit_targets({name: task for name, task in tasks.items() if isinstance(task, Task)}, data)
    batch = first_batch(data, next(iter(data.splits)))
    initialize(trunk, tasks, batch, config.seed, data.splits)
    check_penalties(trunk, tasks)
    check_strategy(config)
    weighting = build_combiner(config, list(tasks))
    check_batch_losses(config, tasks, weighting)
    scheduler = dict(plain(config.scheduler) or {})
    options = {key: scheduler.pop(key) for key in ("interval", "frequency", "monitor") if key in scheduler}
    module = MultiTaskModule(trunk, tasks)
    module.train_with(
        weighting,
        optimizer=instantiate(config.optimizer, _partial_=True, _convert_="all"),
        scheduler=instantiate(scheduler, _partial_=True, _convert_="all")
        if "_target_" in scheduler
        else None,
        scheduler_options=options,
        weighting_learning_rate=config.weighting.get("learning_rate"),
        seed=config.seed,
        shared=shared_in(module, batch) if config.compile else None,
        **step_options(config, weighting, tasks),
    )
    module.automatic_optimization = not module.by_hand(config.trainer.accumulate_grad_batches)
    module.config = plain(config)
    if config.compile:
        module.compile_trunk()
    return module


def build_trainer(
    config: DictConfig, folder: Path, automatic: bool, unused: bool = False
) -> tuple[Trainer, Interruption]:
    """Make the Trainer with its callbacks and loggers.

    The CSV logger, the seed of each step and the answer to signals are always there: no config can
    leave out what makes a run readable afterwards and its resumption exact.

    Args:
        config: The whole config.
        folder: The run's.
        automatic: Whether Lightning's automatic optimization trains.
        unused: Whether there are trained parameters that no loss reaches.
    """
    options = instantiate(config.trainer, _convert_="all")
    window = options["accumulate_grad_batches"]
    if unused and automatic and several_processes(config) and options["strategy"] in ("auto", "ddp"):
        # As manual optimization allows them: torch's DistributedDataParallel waits for their gradients else.
        options["strategy"] = "ddp_find_unused_parameters_true"
    chosen = build_callbacks(config, automatic)
    if not options["enable_progress_bar"]:
        chosen = [callback for callback in chosen if not isinstance(callback, ProgressBar)]
    checkpoints = next((callback for callback in chosen if isinstance(callback, Checkpoints)), None)
    interruption = Interruption(checkpoints, window)
    options["enable_model_summary"] = False  # the run prints one of its own parts
    loggers: list[Logger] = [MetricsCsv(folder)]
    loggers += [instantiate(node, _convert_="all") for node in (config.logger or {}).values() if node]
    try:
        trainer = Trainer(
            **options,
            # The last two see what the chosen ones have done before each epoch and batch.
            callbacks=[StepSeed(config.seed), interruption, *chosen, Frozen(), Fixed(options)],
            logger=loggers,
            default_root_dir=folder,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in chosen),
        )
    except RuntimeError as error:  # two callbacks of one kind, whose states a checkpoint cannot tell apart
        raise ConfigError(f"callbacks: {' '.join(str(error).split())}") from error
    return trainer, interruption


def load_initial(module: MultiTaskModule, path: str) -> None:
    """Start from the parameters in a state dict or checkpoint, strict about names and shapes.

    Raises:
        ConfigError: If the file is not there, or does not hold exactly this trunk and these heads.
    """
    if not Path(path).is_file():
        raise ConfigError(f"init_from={path} is not there; give a state dict or a checkpoint.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader runs through whatever bytes there are
        raise ConfigError(
            f"init_from={path} cannot be read: it is cut short, no state dict, or holds more than weights."
        ) from error
    given: dict[str, Tensor] = content.get("state_dict", content)
    given = {name: value for name, value in given.items() if _is_model(name, module.terms)}
    own = {name: value for name, value in module.state_dict().items() if _is_model(name, module.terms)}
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unknown:
        raise ConfigError(
            f"init_from={path} does not fit: it lacks {missing or 'nothing'} and has {unknown or 'nothing'} that the "
            "model has not; names are trunk.… and tasks.<name>.head.…"
        )
    for name, value in own.items():
        if given[name].shape != value.shape:
            raise ConfigError(
                f"init_from={path} does not fit: {name} is {list(given[name].shape)} there, {list(value.shape)} here."
            )
        if _kind(given[name]) != _kind(value):
            raise ConfigError(
                f"init_from={path} does not fit: {name} is {given[name].dtype} there and {value.dtype} here, and would "
                "be rounded; give the weights as the model has them."
            )
    module.load_state_dict(given, strict=False)


def _kind(values: Tensor) -> tuple[bool, bool]:
    return values.is_floating_point(), values.is_complex()


def _is_model(name: str, terms: Container[str] = ()) -> bool:
    """Return whether a value is a weight of the model, rather than of a combiner, a scaling or a metric."""
    part = name.split(".")
    if part[0] != "tasks":
        return part[0] == "trunk"
    # A task may be called head, too.
    return part[2] in ("head", "prediction") or (part[2] == "loss" and part[1] in terms)
