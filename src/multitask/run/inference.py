"""The model of a checkpoint, to predict with: neither labels nor the training data are needed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from multitask.errors import ConfigError, one_sentence
from multitask.lightning.module import MultiLossModule
from multitask.run.model_choice import TRUNK_AND_HEADS, is_own
from multitask.run.resolvers import plain
from multitask.weighting.state import materialize_buffers

_WRONG = (ConfigError, HydraException, OSError, ValueError, TypeError, RuntimeError, KeyError)


def load_model(config: DictConfig, weights: Mapping[str, Tensor]) -> MultiLossModule:
    """Return the model with these weights, in evaluation mode; lazy layers and fitted targets take their shapes.

    Args:
        config: That of the checkpoint.
        weights: Its state dict; what is the weighting's in it is left out.

    Raises:
        ConfigError: If model and weights do not fit each other.
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
            f"the checkpoint is not of this model; leave model, trunk and tasks as it has them "
            f"({' '.join(str(error).split())})."
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
def explained(path: str, what: str, folder: Path) -> Iterator[None]:
    """Turn an error into one sentence; leave no folder in which nothing was written.

    Args:
        path: The checkpoint.
        what: What cannot be done with it, as ``cannot be exported``.
        folder: The run's.

    Raises:
        ConfigError: For every error that config, data or weights can cause.
    """
    try:
        yield
    except _WRONG as error:
        if isinstance(error, ConfigError):
            raise
        sentence = one_sentence(error) or " ".join(str(error).split())
        raise ConfigError(f"ckpt_path={path} {what}: {sentence}") from error
    finally:
        with suppress(OSError):
            folder.rmdir()
