"""Refuses settings that do not work with parameters sharded over processes."""

from collections.abc import Mapping

from omegaconf import DictConfig

from multitask.errors import ConfigError
from multitask.module import AnyTask, takes_derivatives
from multitask.run.checks import callback_nodes
from multitask.task.penalty import Penalty
from multitask.weighting.base import Combiner, JacobianMethod


def is_sharded(config: DictConfig) -> bool:
    """Return whether the parameters are sharded over processes."""
    strategy = config.trainer.get("strategy")
    return isinstance(strategy, DictConfig) and "ModelParallelStrategy" in str(strategy.get("_target_"))


def check_strategy(config: DictConfig) -> None:
    """Refuse sharding strategies other than ``trainer=fsdp``, and keys that do not work with it."""
    trainer = config.trainer
    strategy = str(trainer.strategy)
    if any(name in strategy.lower() for name in ("fsdp", "deepspeed")):
        raise ConfigError(
            f"trainer.strategy={strategy} splits the parameters over processes so that no task has a gradient of its "
            "own; use trainer=fsdp, which shards by FSDP2."
        )
    if not is_sharded(config):
        return
    if trainer.devices in ("auto", -1, "-1"):
        raise ConfigError(
            f"trainer.devices={trainer.devices} is not a number of shards; set trainer.devices=<number>."
        )
    if trainer.strategy.get("tensor_parallel_size") != 1:
        raise ConfigError(
            "trainer.strategy.tensor_parallel_size splits operations over processes, which task gradients do not "
            "support; set it to 1, as trainer=fsdp does."
        )
    if trainer.strategy.get("save_distributed_checkpoint", True):
        raise ConfigError(
            "trainer.strategy.save_distributed_checkpoint=true writes folders, and runs resume from and evaluate "
            "files; set it to false, as trainer=fsdp does."
        )
    if trainer.precision not in ("32-true", 32, "32", "bf16-mixed", "bf16-true"):
        raise ConfigError(
            f"trainer.precision={trainer.precision} does not work with trainer=fsdp; use 32-true or bf16-mixed."
        )
    if config.compile:
        raise ConfigError(
            "compile=true compiles a trunk in one piece, which trainer=fsdp shards; set compile=false."
        )
    for key, node in callback_nodes(config).items():
        if node.get("probe_every"):
            raise ConfigError(
                f"{key}.probe_every needs whole rows, and with trainer=fsdp no process has them; set it to null."
            )


def check_sharded(config: DictConfig, weighting: Combiner, tasks: Mapping[str, AnyTask]) -> None:
    """Refuse weightings and tasks that need whole parameters or gradients."""
    if not is_sharded(config):
        return
    for name, task in tasks.items():
        if isinstance(task, Penalty):
            raise ConfigError(
                f"tasks.{name} is a penalty on whole parameters, and with trainer=fsdp no process has them; set "
                "optimizer.weight_decay instead, or use trainer=ddp."
            )
        if takes_derivatives(task):
            raise ConfigError(
                f"tasks.{name} differentiates the trunk within its loss, which FSDP2 does not support; use trainer=ddp."
            )
    if weighting.recomputed == "traces":
        raise ConfigError(
            f"weighting={config.method} needs whole gradients of single points, and with trainer=fsdp no process has "
            "them; choose another weighting, or trainer=ddp."
        )
    if not isinstance(weighting, JacobianMethod):
        return
    if weighting.remembers_rows:
        raise ConfigError(
            f"weighting={config.method} remembers a gradient of each task, whose shards a checkpoint does not keep; "
            "choose another weighting, or trainer=ddp."
        )
    for key, possible in (("engine", ("auto", "rows")), ("memory", ("rows",))):
        value = config.weighting.get(key, possible[0])
        if value not in possible:
            raise ConfigError(
                f"weighting.{key}={value} needs whole parameters, and with trainer=fsdp no process has them; use "
                f"weighting.{key}={possible[0]}."
            )
