"""Refuses Trainer keys that cannot work in a run, without heavy imports."""

from typing import Any

from omegaconf import DictConfig

from multitask.errors import ConfigError

# Arguments of Lightning's Trainer that other config keys set.
_ELSEWHERE = {
    "callbacks": "choose callbacks=… or add +callbacks.<name>._target_=…",
    "logger": "choose logger=csv, logger=wandb or several, logger=[wandb,tensorboard]",
    "default_root_dir": "set hydra.run.dir=… or paths.logs=…",
    "enable_checkpointing": "set callbacks.checkpoint=null and selection.metric=null for a run without checkpoints",
}


def check_trainer(config: DictConfig) -> None:
    """Refuse keys that are set elsewhere, contradict others, or would do nothing."""
    trainer = config.trainer
    for key, advice in _ELSEWHERE.items():
        if key in trainer:
            raise ConfigError(f"trainer.{key} is set through other keys; remove it and {advice}.")
    if trainer.get("barebones"):
        raise ConfigError(
            "trainer.barebones=true disables the loggers, checkpoints and progress that record a run; remove it."
        )
    if trainer.get("sync_batchnorm") and (trainer.accelerator == "cpu" or trainer.devices in (1, "1")):
        raise ConfigError(
            "trainer.sync_batchnorm=true is for several GPUs; remove it, or use trainer=ddp trainer.devices=<more>."
        )
    if trainer.val_check_interval == 0:
        raise ConfigError(
            "trainer.val_check_interval=0 is not an interval; for a run without validation, set "
            "trainer.limit_val_batches=0 and selection.metric=null."
        )
    if trainer.limit_test_batches == 0 and config.evaluation.splits:
        raise ConfigError(
            f"trainer.limit_test_batches=0 leaves no batch of evaluation.splits={list(config.evaluation.splits)} to "
            "evaluate; raise it, or set evaluation.splits=[]."
        )
    if "trained" not in config:  # a key of the scripts that read a checkpoint, which do not train
        _check_validation(config)


# Without validation these have no effect on training; the record says which weights were evaluated.
_PASSIVE = ("selection.metric", "callbacks.progress.monitor")


def _check_validation(config: DictConfig) -> None:
    """Refuse a scheduler or callback that watches a metric if the run has no validation."""
    trainer = config.trainer
    found = {key: metric for key, metric in watched(config).items() if metric and key not in _PASSIVE}
    found |= {
        f"callbacks.{name}.metric": callback.metric
        for name, callback in (config.callbacks or {}).items()
        if callback and callback.get("metric")
    }
    if not found or trainer.fast_dev_run:
        return
    if trainer.limit_val_batches == 0:
        reason = "trainer.limit_val_batches=0 disables it"
    elif (
        trainer.check_val_every_n_epoch is not None
        and 0 < (trainer.max_epochs or 0) < trainer.check_val_every_n_epoch
    ):
        reason = (
            f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch} comes after the last of "
            f"trainer.max_epochs={trainer.max_epochs}"
        )
    else:
        return
    key, metric = next(iter(found.items()))
    raise ConfigError(f"{key}={metric} needs validation, and {reason}; {without(key)}, or validate.")


def without(key: str) -> str:
    """Return advice on how to disable a key that :func:`watched` returns."""
    if key == "selection.metric":
        return "set selection.metric=null to keep the last weights"
    if key == "scheduler.monitor":
        return "choose a scheduler that watches nothing, such as scheduler=none"
    return f"set {key.rpartition('.')[0]}=null"


def watched(config: DictConfig) -> dict[str, Any]:
    """Return the keys that name a validation metric, with the metric."""
    keys = {
        "selection.metric": config.selection.metric,
        "scheduler.monitor": (config.scheduler or {}).get("monitor"),
    }
    return keys | {
        f"callbacks.{name}.monitor": callback.get("monitor")
        for name, callback in (config.callbacks or {}).items()
        if callback and name != "checkpoint"
    }
