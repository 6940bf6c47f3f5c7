"""Loads weights from files, strict about names, shapes and types."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import seed_everything
from omegaconf import DictConfig
from torch import Tensor

from multitask.errors import ConfigError, explained, on_one_line
from multitask.lightning.module import MultiLossModule
from multitask.module import MultiTaskModule
from multitask.run.checkpoint import read_checkpoint, read_file
from multitask.run.console import quiet
from multitask.run.initialization import make_model
from multitask.weighting.state import materialize_buffers


@contextmanager
def opened(config: DictConfig, what: str) -> Iterator[dict[str, Any]]:
    """Read a checkpoint and seed the generators; turn errors into one sentence, and remove an empty folder.

    ``what`` is for the error message, such as ``cannot be exported``.
    """
    quiet()
    try:
        torch.set_float32_matmul_precision(config.matmul_precision)
        seed_everything(config.seed, workers=True, verbose=False)
        yield read_checkpoint(config.ckpt_path)
    except ConfigError:
        raise
    except Exception as error:
        sentence = explained(error, OSError, ValueError, TypeError, RuntimeError, KeyError)
        if sentence is None:
            raise
        raise ConfigError(f"ckpt_path={config.ckpt_path} {what}: {sentence}") from error
    finally:
        with suppress(OSError):
            Path(HydraConfig.get().runtime.output_dir).rmdir()


def load_initial(module: MultiLossModule, path: str) -> None:
    """Load the initial weights from a state dict or checkpoint, strict about names, shapes and types."""
    content = read_file("init_from", path, "a state dict or a checkpoint")
    given: dict[str, Tensor] = content.get("state_dict", content)
    given = {name: value for name, value in given.items() if _is_model(module, name)}
    own = {name: value for name, value in module.state_dict().items() if _is_model(module, name)}
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unknown:
        trunk_and_heads = isinstance(module, MultiTaskModule)
        named = "trunk.… and tasks.<name>.head.…" if trunk_and_heads else "those of the model's state_dict"
        raise ConfigError(
            f"init_from={path} does not fit: it lacks {missing or 'nothing'} and has {unknown or 'nothing'} that the "
            f"model lacks; names are {named}."
        )
    for name, value in own.items():
        if given[name].shape != value.shape:
            raise ConfigError(
                f"init_from={path} does not fit: {name} is {list(given[name].shape)} in the file and "
                f"{list(value.shape)} in the model."
            )
        if _kind(given[name]) != _kind(value):
            raise ConfigError(
                f"init_from={path} does not fit: {name} is {given[name].dtype} in the file and {value.dtype} in the "
                "model, and would be rounded; give the weights in the types of the model."
            )
    module.load_state_dict(given, strict=False)


def load(module: MultiLossModule, weights: dict[str, Tensor]) -> None:
    """Load a checkpoint's weights, strict about names and shapes."""
    own, given = _without_weighting(module.state_dict()), _without_weighting(weights)
    advice = "leave model, trunk and tasks as the checkpoint has them"
    for name in sorted(own.keys() ^ given.keys()):
        where = "the checkpoint" if name in given else "the config's model"
        raise ConfigError(f"{name} is only in {where}; {advice}.")
    for name, value in own.items():
        if given[name].shape != value.shape:
            raise ConfigError(
                f"{name} is {list(given[name].shape)} in the checkpoint and {list(value.shape)} by the "
                f"config; {advice}, and give data of the same shape."
            )
    module.load_state_dict(weights)


def load_model(config: DictConfig, weights: Mapping[str, Tensor]) -> MultiLossModule:
    """Return the model in evaluation mode with a checkpoint's weights, from which lazy and fitted parts take shapes."""
    module: MultiLossModule = make_model(config)
    given = _without_weighting(weights)
    materialize_buffers(module, given, "")
    for name, buffer in list(module.named_buffers()):
        if name.startswith("tasks.") and name in given and buffer.shape != given[name].shape:
            owner, _, key = name.rpartition(".")
            setattr(module.get_submodule(owner), key, given[name].clone())
    try:
        module.load_state_dict(given)
    except RuntimeError as error:
        raise ConfigError(
            f"the checkpoint's weights do not match the model; leave model, trunk and tasks as in its config "
            f"({on_one_line(error)})."
        ) from error
    return module.eval()


def _without_weighting(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith("weighting.")}


def _kind(values: Tensor) -> tuple[bool, bool]:
    return values.is_floating_point(), values.is_complex()


def _is_model(module: MultiLossModule, name: str) -> bool:
    """Return whether a name in a state dict belongs to the model itself, and not to the way it is trained."""
    part = name.split(".")
    if not isinstance(module, MultiTaskModule):
        return part[0] != "weighting"
    if part[0] != "tasks":
        return part[0] == "trunk"
    # A task may be called head, too.
    return part[2] in ("head", "prediction") or (part[2] == "loss" and part[1] in module.terms)
