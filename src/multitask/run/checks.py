"""Checks of a config that need no heavy import."""

import errno
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from multitask.errors import ConfigError, check_names, choices, one_sentence
from multitask.evaluation.names import SINGLE_TASK
from multitask.run import names
from multitask.run.model_choice import check_choices, is_own, leave_out_trunk_and_tasks
from multitask.run.record import of_task
from multitask.run.schema import OF_CHECKPOINT, TRAIN, check_sections, check_values

# The package of each logger, and the argument of pip install.
_PACKAGES = {
    "tensorboard": ("tensorboard", '-e ".[tensorboard]"'),
    "mlflow": ("mlflow", '-e ".[mlflow]"'),
    "comet": ("comet_ml", '-e ".[comet]"'),
    "aim": ("aim", "aim"),
}
# Arguments of Lightning's Trainer that other config keys set.
_ELSEWHERE = {
    "callbacks": "choose callbacks=… or add +callbacks.<name>._target_=…",
    "logger": "choose logger=csv, logger=wandb or several, logger=[wandb,tensorboard]",
    "default_root_dir": "set hydra.run.dir=… or paths.logs=…",
    "enable_checkpointing": "set callbacks.checkpoint=null and selection.metric=null for a run without checkpoints",
}
# Without validation these have no effect on training; the record says which weights were evaluated.
_PASSIVE = ("selection.metric", "callbacks.progress.monitor")


def check(config: DictConfig) -> None:
    """Refuse a config that cannot work."""
    own = is_own(config)
    if own:
        check_choices(config)
    reduce_config(config, own)
    check_sections(config, own)
    for key in _missing(_plain(config)):
        raise ConfigError(f"{key} has no value; set {key}=…")
    check_values(config, TRAIN)
    if "trained" in config:
        check_values(config, OF_CHECKPOINT)
    check_trainer(config)
    check_loggers(config)
    scheduler = config.get("scheduler") or {}
    if str(scheduler.get("_target_")).endswith("ReduceLROnPlateau") and not scheduler.get("monitor"):
        raise ConfigError("scheduler.monitor is not set; name a logged metric, for example val/loss.")
    stopping = (config.get("callbacks") or {}).get("early_stopping")
    if stopping and _plain(config)["selection"]["metric"] is None:
        raise ConfigError(
            "callbacks=early_stopping watches selection.metric, which is null; name a logged metric, or use "
            "callbacks=default."
        )
    if not own:
        _check_tasks(config)


def check_loggers(config: DictConfig) -> None:
    """Refuse a logger whose package is not installed."""
    for name, node in (config.get("logger") or {}).items():
        package, install = _PACKAGES.get(str(name), ("multitask", ""))
        if node and find_spec(package) is None:
            raise ConfigError(
                f"logger={name} needs the package {package}; install it with pip install {install}."
            )


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


def _check_validation(config: DictConfig) -> None:
    """Refuse a scheduler or callback that watches a metric if the run has no validation."""
    trainer = config.trainer
    found = {key: metric for key, metric in watched(config).items() if metric and key not in _PASSIVE}
    found |= {f"{k}.metric": node.metric for k, node in callback_nodes(config).items() if node.get("metric")}
    every, epochs, reason = trainer.check_val_every_n_epoch, trainer.max_epochs or 0, ""
    if trainer.limit_val_batches == 0:
        reason = "trainer.limit_val_batches=0 disables it"
    elif every is not None and 0 < epochs < every:
        reason = (
            f"trainer.check_val_every_n_epoch={every} comes after the last of trainer.max_epochs={epochs}"
        )
    for key, metric in found.items() if reason and not trainer.fast_dev_run else ():
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
    scheduler = (config.scheduler or {}).get("monitor")
    return {"selection.metric": config.selection.metric, "scheduler.monitor": scheduler} | {
        f"{key}.monitor": node.get("monitor")
        for key, node in callback_nodes(config).items()
        if key != "callbacks.checkpoint"
    }


def callback_nodes(config: DictConfig) -> dict[str, DictConfig]:
    """Return the callbacks of the config that are not null, by key, such as ``callbacks.progress``."""
    return {f"callbacks.{name}": node for name, node in (config.callbacks or {}).items() if node}


def reduce_config(config: DictConfig, own: bool) -> None:
    """Reduce the config to what the run uses: no trunk and tasks for a user's own model, one task with ``only``."""
    if own:
        leave_out_trunk_and_tasks(config)
    else:
        keep_only(config)


def _check_tasks(config: DictConfig) -> None:
    tasks = list(config.get("tasks") or {})
    if OmegaConf.select(config, "hydra.runtime.choices.baseline") == SINGLE_TASK and len(tasks) > 1:
        raise ConfigError(
            f"baseline={SINGLE_TASK} trains one task per run, and there are {', '.join(tasks)}; add -m to train each "
            "of them separately, or choose one with only=<task>."
        )
    if not tasks:
        raise ConfigError("task=[] leaves no task; choose at least one, for example task=[multi_mnist/left].")
    if config.method == SINGLE_TASK and len(tasks) > 1:
        raise ConfigError(
            f"method={SINGLE_TASK} is the record's name for a task trained alone, and there are {', '.join(tasks)}; "
            "rename the method, or the weighting's file."
        )
    names.check_names(config.tasks)
    for key, value in _plain(config.weighting).items():
        if isinstance(value, Mapping) and "_target_" not in value:
            check_names(f"weighting.{key}", value, tasks)


def keep_only(config: DictConfig) -> None:
    """Keep only the task that ``only`` names, if any, and drop settings of other tasks."""
    name = config.get("only")
    if name is None:
        return
    if name not in (config.get("tasks") or {}):
        raise ConfigError(
            f"only={name}: there is no such task; {choices(str(name), map(str, config.get('tasks') or {}))}"
        )
    with open_dict(config):
        config.tasks = {name: config.tasks[name]}
        if groups := _plain(config).get("parameter_groups"):
            config.parameter_groups = of_task(groups, str(name))
        for key, value in config.weighting.items():
            if isinstance(value, DictConfig) and "_target_" not in value:
                config.weighting[key] = {}
        if (config.get("callbacks") or {}).get("schedule"):
            config.callbacks.schedule = None


def _plain(config: DictConfig) -> dict[str, Any]:
    return dict(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]


def _missing(node: Any, key: str = "") -> Iterator[str]:
    """Yield the keys that have no value; Hydra fills its own."""
    if isinstance(node, Mapping):
        for name, inner in node.items():
            if key or name != "hydra":
                yield from _missing(inner, f"{key}.{name}" if key else str(name))
    elif node == "???":
        yield key


class CheckConfig(Callback):
    """Hydra callback that checks a run's config before its folder is made."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit if the config cannot work: Hydra would turn an exception into a warning."""
        HydraConfig.instance().set_config(config)  # Hydra does so later; some keys refer to it
        try:
            check(config)
            make_folder(config.hydra.run.dir)
        except Exception as error:
            raise SystemExit(f"error: {one_sentence(error) or error}") from None


def make_folder(path: str) -> None:
    """Make a run's folder; refuse one that cannot be made or written to."""
    try:
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"hydra.run.dir={path} cannot be written: {error.strerror}; choose another folder, or paths.logs=…"
        ) from error
