"""Loads a checkpoint's model for prediction, without labels or training data."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning import seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from multitask.errors import ConfigError, on_one_line, one_sentence
from multitask.lightning.module import MultiLossModule
from multitask.run.checkpoint import read_checkpoint
from multitask.run.console import quiet
from multitask.run.model_choice import TRUNK_AND_HEADS, is_own
from multitask.run.resolvers import plain
from multitask.weighting.state import materialize_buffers

# Errors that libraries raise for a config, data or weights that they cannot use.
_LIBRARY_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    MisconfigurationException,
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    KeyError,
)


def load_model(config: DictConfig, weights: Mapping[str, Tensor]) -> MultiLossModule:
    """Return the model with these weights, in evaluation mode; lazy layers and fitted targets take their shapes.

    Args:
        config: The checkpoint's config.
        weights: Its state dict; entries of the weighting are skipped.

    Raises:
        ConfigError: If model and weights do not match.
    """
    module = _made(config)
    given = {name: value for name, value in weights.items() if not name.startswith("weighting.")}
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


def _made(config: DictConfig) -> MultiLossModule:
    if is_own(config):
        own: MultiLossModule = instantiate(plain(config.model), _convert_="all")
        return own
    model = plain(config.model) if "model" in config else {"_target_": TRUNK_AND_HEADS}
    trunk: nn.Module = instantiate(config.trunk, _convert_="all")
    tasks = {name: instantiate(node, _convert_="all") for name, node in config.tasks.items()}
    module: MultiLossModule = instantiate(model, _partial_=True, _convert_="all")(trunk=trunk, tasks=tasks)
    return module


@contextmanager
def opened(config: DictConfig, what: str) -> Iterator[dict[str, Any]]:
    """Read a checkpoint and seed the generators; turn errors into one sentence, and remove an empty folder.

    Args:
        config: The checkpoint's config.
        what: What failed, such as ``cannot be exported``, for the error message.

    Yields:
        The result of :func:`~multitask.run.checkpoint.read_checkpoint`.

    Raises:
        ConfigError: For every error that config, data or weights can cause.
    """
    quiet()
    try:
        torch.set_float32_matmul_precision(config.matmul_precision)
        seed_everything(config.seed, workers=True, verbose=False)
        yield read_checkpoint(config.ckpt_path)
    except ConfigError:
        raise
    except _LIBRARY_ERRORS as error:
        sentence = one_sentence(error) or on_one_line(error)
        raise ConfigError(f"ckpt_path={config.ckpt_path} {what}: {sentence}") from error
    finally:
        with suppress(OSError):
            Path(HydraConfig.get().runtime.output_dir).rmdir()
