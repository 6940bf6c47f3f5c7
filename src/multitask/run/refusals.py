"""What can be said of a config once torch is there, before the first training step."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from omegaconf import DictConfig

from multitask.data.base import DataModule
from multitask.module import MultiTaskModule
from multitask.run.errors import ConfigError, choices
from multitask.run.trainer_keys import watched


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


def check_targets(config: Mapping[str, Any]) -> None:
    """Refuse a ``_target_`` that cannot be imported.

    Raises:
        ConfigError: Naming the key, the part that is not there and what is near it.
    """
    for key, target in _targets("", config):
        _check_target(key, target)


def _targets(key: str, node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for name, inner in node.items():
            if name == "_target_" and isinstance(inner, str):
                yield f"{key}._target_", inner
            else:
                yield from _targets(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(node, list):
        for i, inner in enumerate(node):
            yield from _targets(f"{key}.{i}", inner)


def _check_target(key: str, target: str) -> None:
    parts = target.split(".")
    found: Any = None
    for i, part in enumerate(parts):
        name = ".".join(parts[: i + 1])
        if found is not None and hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = import_module(name)
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(error.name):
                raise ConfigError(
                    f"{key}={target} needs the package {error.name}, which is not installed."
                ) from error
            if i == 0:
                raise ConfigError(f"{key}={target}: there is no package '{part}'.") from error
            near = [n for n in dir(found) if not n.startswith("_")]
            parent = ".".join(parts[:i])
            raise ConfigError(f"{key}={target}: {parent} has no '{part}'; {_near(part, near)}") from error


def _near(wrong: str, names: list[str]) -> str:
    hint = choices(wrong, names)
    if len(names) <= 20:
        return hint
    meant, _, _ = hint.rpartition(" Choices:")
    return meant or "mind the spelling."


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
    wanted = {key: metric for key, metric in watched(config).items() if metric is not None}
    if not wanted:
        return
    if "val" not in data.splits:
        key, metric = next(iter(wanted.items()))
        raise ConfigError(
            f"{key}={metric} needs a validation split and the data has none; give data.split a share for it, or set "
            f"{key}=null to keep the last weights."
        )
    known = module.validation_keys(next(iter(data.loader("val"))))
    for key, metric in wanted.items():
        if metric not in known:
            raise ConfigError(f"{key}={metric} is not logged; {choices(metric, known)}")


def check_intervals(config: DictConfig, data: DataModule) -> None:
    """Refuse limits that leave no batch, and a validation interval that is longer than an epoch.

    Raises:
        ConfigError: Naming the key.
    """
    trainer = config.trainer
    batches = len(data.loader("train", training=True))
    for key in ("limit_train_batches", "overfit_batches"):
        _check_share(f"trainer.{key}", trainer[key], "train", batches)
    if "val" in data.splits:
        _check_share("trainer.limit_val_batches", trainer.limit_val_batches, "val", len(data.loader("val")))
    for split in config.evaluation.splits:
        _check_share("trainer.limit_test_batches", trainer.limit_test_batches, split, len(data.loader(split)))
    interval, limit = trainer.val_check_interval, trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if isinstance(interval, int) and interval > batches and trainer.check_val_every_n_epoch is not None:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is more than the {batches} batches of an epoch; make it at most "
            "that, or set trainer.check_val_every_n_epoch=null to count batches over epochs."
        )


def _check_share(key: str, share: int | float, split: str, batches: int) -> None:
    if isinstance(share, float) and 0 < share < 1 and int(share * batches) == 0:
        raise ConfigError(
            f"{key}={share} is less than one of the {batches} batches of the {split} split; set at least "
            f"{1 / batches:.3g}, or a whole number of batches."
        )
