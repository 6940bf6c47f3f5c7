"""From a config to the combiner and to how it trains."""

from collections.abc import Mapping

from omegaconf import DictConfig

from multitask.optimization import ManualOptimization
from multitask.penalty import Penalty
from multitask.run.engines import build_engine, several_processes
from multitask.run.errors import ConfigError, choices
from multitask.run.resolvers import plain
from multitask.step import Step
from multitask.task import Task
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization
from multitask.weighting.build import build_weighting

# Keys of the weighting group that are for the module, not for the combiner's constructor.
_FOR_MODULE = ("learning_rate", "engine", "heads")
MANUAL_KEYS = ("gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
"""Keys of the Trainer that manual optimization takes over."""


def build_combiner(config: DictConfig, tasks: list[str]) -> Combiner:
    """Make the combiner that ``config.weighting`` names.

    Raises:
        ConfigError: If a learning rate is given to one that has no parameters.
    """
    arguments = {key: value for key, value in plain(config.weighting).items() if key not in _FOR_MODULE}
    combiner = build_weighting(arguments, tasks)
    rate = config.weighting.get("learning_rate")
    if rate is not None and not any(True for _ in combiner.parameters()):
        raise ConfigError(
            f"weighting.learning_rate={rate} is of a combiner's own parameters, and weighting={config.method} has "
            "none; leave weighting.learning_rate=null."
        )
    return combiner


def build_manual(
    config: DictConfig, weighting: Combiner, tasks: Mapping[str, Task | Penalty]
) -> ManualOptimization | None:
    """Return manual optimization, ``None`` where automatic optimization does the same.

    Automatic optimization adds up the scalars of micro-batches, which is the scalar of the whole
    batch only where there is one micro-batch; and it moves the head of a task without a label.

    Raises:
        ConfigError: If engine, heads and combiner do not go together.
    """
    heads = config.weighting.get("heads", "own")
    if heads not in ("own", "weighted"):
        raise ConfigError(f"weighting.heads={heads} is not there; {choices(heads, ('own', 'weighted'))}")
    missing = any(isinstance(task, Task) and task.missing for task in tasks.values())
    penalties = [name for name, task in tasks.items() if isinstance(task, Penalty)]
    engine = build_engine(config, weighting, penalties)
    if isinstance(weighting, Scalarization):
        if heads != "own":
            raise ConfigError(
                f"weighting={config.method} is a scalarization: its heads get the scalar's gradient; leave "
                "weighting.heads=own."
            )
        if config.trainer.accumulate_grad_batches == 1 and not missing:
            return None
    if isinstance(weighting, JacobianMethod):
        if heads == "weighted" and not weighting.gives_weights:
            raise ConfigError(
                f"weighting={config.method} gives a gradient and no weights that heads could get; set "
                "weighting.heads=own."
            )
        if weighting.rows == "example":
            _check_examples(config, missing, penalties)
    keys = {key: config.trainer.get(key) for key in MANUAL_KEYS}
    return ManualOptimization(Step(engine, heads == "weighted"), **keys)


def _check_examples(config: DictConfig, missing: bool, penalties: list[str]) -> None:
    """Refuse what a Gramian of all examples and tasks cannot be cut into.

    Raises:
        ConfigError: Naming the key.
    """
    needs = f"weighting={config.method} weighs the losses of all examples of a batch against one another"
    if config.trainer.accumulate_grad_batches > 1:
        raise ConfigError(f"{needs}; set trainer.accumulate_grad_batches=1.")
    if several_processes(config):
        raise ConfigError(
            f"{needs}, and no process has them all; set trainer.devices=1 and trainer.num_nodes=1."
        )
    if missing:
        raise ConfigError(f"{needs}, and one without a label has no loss; leave out tasks with missing=true.")
    if penalties:
        raise ConfigError(
            f"{needs}, and the penalty tasks.{penalties[0]} is a loss of none; leave it out, or set "
            "optimizer.weight_decay."
        )


def check_strategy(config: DictConfig) -> None:
    """Refuse strategies that split parameters over processes: task gradients need them whole.

    Raises:
        ConfigError: Naming the key.
    """
    strategy = str(config.trainer.strategy)
    if any(name in strategy.lower() for name in ("fsdp", "deepspeed", "modelparallel")):
        raise ConfigError(
            f"trainer.strategy={strategy} splits the parameters over processes, and a task's gradient needs them "
            "whole; set trainer.strategy=ddp."
        )
