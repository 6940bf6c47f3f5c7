"""What can be said of a config once torch is there, before the first training step."""

import torch
from omegaconf import DictConfig

from multitask.data.base import DataModule, Split
from multitask.module import MultiTaskModule
from multitask.run.errors import ConfigError, choices


def check_hardware(config: DictConfig) -> None:
    """Refuse a GPU that is not there.

    Raises:
        ConfigError: Naming the key.
    """
    accelerator, devices = config.trainer.get("accelerator", "auto"), config.trainer.get("devices", 1)
    precision = str(config.trainer.get("precision", ""))
    if precision.startswith("16") and not _has_half(accelerator):
        raise ConfigError(
            f"trainer.precision={precision} needs a GPU, and the run is on the CPU; take trainer=gpu, or "
            "trainer.precision=bf16-mixed."
        )
    if accelerator not in ("gpu", "cuda"):
        return
    count = torch.cuda.device_count()
    if count == 0 and not (accelerator == "gpu" and torch.backends.mps.is_available()):
        raise ConfigError(
            f"trainer.accelerator={accelerator} needs a GPU and torch finds none here; choose trainer=cpu."
        )
    if count and isinstance(devices, int) and devices > count:
        raise ConfigError(
            f"trainer.devices={devices} are more than the {count} GPUs here; choose at most {count}."
        )


def _has_half(accelerator: str) -> bool:
    """Return whether the accelerator trains in half precision: Lightning takes bfloat16 on a CPU, and warns only."""
    if accelerator == "auto":
        return torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator != "cpu"


def check_averaging(config: DictConfig) -> None:
    """Refuse to average weights for the end of a run and measure those of its best epoch.

    Raises:
        ConfigError: Naming the key.
    """
    for name, callback in (config.callbacks or {}).items():
        target = str((callback or {}).get("_target_", ""))
        if target.endswith("StochasticWeightAveraging") and config.selection.metric is not None:
            raise ConfigError(
                f"callbacks.{name} puts the averaged weights in place at the end, and "
                f"selection.metric={config.selection.metric} measures the weights of one epoch; set "
                "selection.metric=null, or take lightning.pytorch.callbacks.EMAWeightAveraging, which is validated."
            )


def check_against_data(config: DictConfig, data: DataModule, module: MultiTaskModule) -> None:
    """Refuse splits that the data has not and figures that validation does not log.

    Raises:
        ConfigError: Naming the key.
    """
    for split in config.evaluation.splits:
        if split not in data.splits:
            raise ConfigError(
                f"evaluation.splits names {split}, and the data has {', '.join(data.splits)}; name those you have."
            )
    wanted = {
        "selection.metric": config.selection.metric,
        "scheduler.monitor": (config.scheduler or {}).get("monitor"),
    }
    wanted |= {
        f"callbacks.{name}.monitor": callback.get("monitor")
        for name, callback in (config.callbacks or {}).items()
        if callback and name != "checkpoint"
    }
    wanted = {key: metric for key, metric in wanted.items() if metric is not None}
    if not wanted:
        return
    if "val" not in data.splits:
        key, metric = next(iter(wanted.items()))
        raise ConfigError(
            f"{key}={metric} needs a validation split and the data has none; give data.split a share for it, or set "
            f"{key}=null to keep the last weights."
        )
    known, labelled = module.validation_keys, _labelled(data.splits["val"], module)
    valued = module.keys_of(labelled)
    for key, metric in wanted.items():
        if metric not in known:
            raise ConfigError(f"{key}={metric} is not logged; {choices(metric, known)}")
        if metric not in valued:
            raise ConfigError(
                f"{key}={metric} never has a value, since the validation split has no label of "
                f"{', '.join(name for name in module.names if name not in labelled)}; name another metric, or set "
                "selection.metric=null to keep the last weights."
            )


def _labelled(split: Split, module: MultiTaskModule) -> list[str]:
    """Return the tasks that can have a loss on a split: all, where it does not lie in memory."""
    if not isinstance(split, Mapping):
        return module.names
    return [
        name for name in module.names if name not in module.by_name or module.by_name[name].count(dict(split))
    ]


def check_optimizer(module: MultiTaskModule) -> None:
    """Refuse arguments that optimizer or scheduler do not take, by making both once.

    Raises:
        ConfigError: With what the class says of them.
    """
    try:
        module.configure_optimizers()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer and scheduler cannot be made: {' '.join(str(error).split())}; mind their keys."
        ) from error


def check_intervals(config: DictConfig, data: DataModule) -> None:
    """Refuse a validation interval that is longer than an epoch.

    Raises:
        ConfigError: Naming the key.
    """
    interval, limit = config.trainer.val_check_interval, config.trainer.limit_train_batches
    batches = len(data.loader("train", training=True))
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if (
        isinstance(interval, int)
        and interval > batches
        and config.trainer.check_val_every_n_epoch is not None
    ):
        raise ConfigError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch; make it at most "
            "that, or set trainer.check_val_every_n_epoch=null to count batches over epochs."
        )
