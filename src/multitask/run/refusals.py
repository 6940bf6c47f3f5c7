"""Checks of a config that need torch, before the first training step."""

from collections.abc import Mapping

import torch
from omegaconf import DictConfig

from multitask.data.base import Split
from multitask.errors import ConfigError, choices
from multitask.lightning.metric_keys import from_keys
from multitask.lightning.module import MultiLossModule
from multitask.module import MultiTaskModule
from multitask.run.checks import watched, without
from multitask.run.data import Data, OtherData, batches_in, batches_taken
from multitask.task.targets import Standardized


def check_hardware(config: DictConfig) -> None:
    """Refuse a GPU that this machine does not have, and a precision that needs one on the CPU."""
    accelerator, devices = config.trainer.get("accelerator", "auto"), config.trainer.get("devices", 1)
    precision = str(config.trainer.get("precision", ""))
    # With half precision on a CPU, Lightning uses bfloat16 with a warning.
    on_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if precision.startswith("16") and not (on_gpu if accelerator == "auto" else accelerator != "cpu"):
        raise ConfigError(
            f"trainer.precision={precision} needs a GPU, and the run is on the CPU; use trainer=gpu, or "
            "trainer.precision=bf16-mixed."
        )
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "trainer.accelerator=mps needs the GPU of a Mac and torch finds none; choose trainer=cpu."
        )
    if accelerator not in ("gpu", "cuda"):
        return
    count = torch.cuda.device_count()
    if count == 0 and not (accelerator == "gpu" and torch.backends.mps.is_available()):
        raise ConfigError(
            f"trainer.accelerator={accelerator} needs a GPU and torch finds none; choose trainer=cpu."
        )
    if count and isinstance(devices, int) and devices > count:
        raise ConfigError(
            f"trainer.devices={devices} is more than the {count} GPUs of this machine; choose at most {count}."
        )


_TRUE_HALF = {"16-true": torch.float16, "bf16-true": torch.bfloat16}
_LOST = 0.01  # standard deviations


def check_rounding(config: DictConfig, module: MultiLossModule) -> None:
    """Refuse a precision that rounds standardized targets too coarsely before their mean is subtracted."""
    dtype = _TRUE_HALF.get(str(config.trainer.get("precision", "")))
    if dtype is None or not isinstance(module, MultiTaskModule):
        return
    for name, task in module.by_name.items():
        if not isinstance(task.transform, Standardized):
            continue
        mean, std = task.transform.mean, task.transform.std
        column = int((mean.abs() / std).argmax())
        if float(mean[column].abs() / std[column]) * torch.finfo(dtype).eps / 2 > _LOST:
            raise ConfigError(
                f"trainer.precision={config.trainer.precision} rounds batches before tasks.{name}.transform subtracts "
                f"the mean {mean[column]:.4g} of the target '{task.target}', whose deviation is {std[column]:.4g}; "
                f"set trainer.precision={config.trainer.precision.removesuffix('true')}mixed, or shift the target."
            )


def check_splits(config: DictConfig, data: Data) -> None:
    """Refuse evaluation splits that the data lacks, or whose loader may shuffle or augment."""
    for split in config.evaluation.splits:
        if split not in data.splits:
            raise ConfigError(
                f"evaluation.splits names {split}, and the data has {', '.join(data.splits)}; name one of these."
            )
        if split == "train" and isinstance(data, OtherData):
            raise ConfigError(
                "evaluation.splits names train, and the training loader of "
                f"{type(data.module).__name__} may shuffle, repeat or augment; name val or test."
            )


def check_against_data(config: DictConfig, data: Data, module: MultiLossModule) -> None:
    """Refuse evaluation splits that the data lacks and metrics that validation does not log."""
    check_splits(config, data)
    _check_multiplicative(config, module)
    wanted = {key: metric for key, metric in watched(config).items() if metric is not None}
    if not wanted:
        return
    if "val" not in data.splits:
        key, metric = next(iter(wanted.items()))
        raise ConfigError(
            f"{key}={metric} needs a validation split and the data has none; give data.split a share for it, or "
            f"{without(key)}."
        )
    known = module.validation_keys
    labelled = _labelled(data.splits["val"], module)
    valued = known if labelled == module.names else module.keys_of(labelled)
    for key, metric in wanted.items():
        if metric not in known:
            raise ConfigError(f"{key}={metric} is not logged; {choices(metric, known)}")
        if metric not in valued:
            raise ConfigError(
                f"{key}={metric} never has a value, since the validation split has no label for "
                f"{', '.join(name for name in module.names if name not in labelled)}; name another metric, or "
                f"{without(key)}."
            )


def _check_multiplicative(config: DictConfig, module: MultiLossModule) -> None:
    """Refuse a name that is not a metric's; with ``only``, names of the other tasks are allowed."""
    metrics = from_keys(dict.fromkeys(module.keys_of(module.names) | module.validation_keys, 0.0))
    known = {name for task, metric in metrics for name in (metric, f"{task}/{metric}")}
    for name in config.evaluation.multiplicative if config.get("only") is None else ():
        if name not in known:
            raise ConfigError(
                f"evaluation.multiplicative names {name}, which is not a metric; {choices(str(name), known)}"
            )


def _labelled(split: Split | None, module: MultiLossModule) -> list[str]:
    """Return the tasks that can have a loss on a split: all of them if it is not in memory."""
    if not isinstance(split, Mapping) or not isinstance(module, MultiTaskModule):
        return module.names
    return [
        name for name in module.names if name not in module.by_name or module.by_name[name].count(dict(split))
    ]


def check_intervals(config: DictConfig, data: Data) -> None:
    """Refuse limits that leave no batch, and a validation interval longer than an epoch."""
    trainer = config.trainer
    batches = batches_in(data.loader("train", training=True))
    for key in ("limit_train_batches", "overfit_batches"):
        _check_share(f"trainer.{key}", trainer[key], "train", batches)
    evaluated = [("limit_val_batches", "val")] if "val" in data.splits else []
    # The test stage of another data module is set up when its turn comes.
    splits = [each for each in config.evaluation.splits if each != "test" or not isinstance(data, OtherData)]
    for key, split in evaluated + [("limit_test_batches", split) for split in splits]:
        _check_share(f"trainer.{key}", trainer[key], split, batches_in(data.loader(split)))
    interval = trainer.val_check_interval
    if batches is None:
        return
    batches = batches_taken(batches, trainer.limit_train_batches)
    if isinstance(interval, int) and interval > batches and trainer.check_val_every_n_epoch is not None:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch; make it at most "
            "that, or set trainer.check_val_every_n_epoch=null to count batches over epochs."
        )


def _check_share(key: str, share: int | float, split: str, batches: int | None) -> None:
    if not (isinstance(share, float) and 0 < share < 1):
        return
    if batches is None:
        raise ConfigError(
            f"{key}={share} is a fraction of the {split} split, whose loader has no length; give a number of batches."
        )
    if int(share * batches) == 0:
        raise ConfigError(
            f"{key}={share} is less than one of the {batches} batches of the {split} split; set at least "
            f"{1 / batches:.3g}, or a whole number of batches."
        )
