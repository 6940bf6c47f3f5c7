"""Loads weights from files, strict about names, shapes and types."""

from torch import Tensor

from multitask.errors import ConfigError
from multitask.lightning.module import MultiLossModule
from multitask.module import MultiTaskModule
from multitask.run.checkpoint import read_file


def load_initial(module: MultiLossModule, path: str) -> None:
    """Load the initial weights from a state dict or checkpoint, strict about names, shapes and types.

    Raises:
        ConfigError: If the file does not exist, or its trunk and heads are not exactly the model's.
    """
    content = read_file("init_from", path, "a state dict or a checkpoint")
    given: dict[str, Tensor] = content.get("state_dict", content)
    given = {name: value for name, value in given.items() if _is_model(module, name)}
    own = {name: value for name, value in module.state_dict().items() if _is_model(module, name)}
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unknown:
        raise ConfigError(
            f"init_from={path} does not fit: it lacks {missing or 'nothing'} and has {unknown or 'nothing'} that the "
            f"model lacks; names are {_named(module)}."
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
    """Load a checkpoint's weights, strict about names and shapes.

    Raises:
        ConfigError: If the config describes another module than the one that was saved.
    """
    own = {name: value for name, value in module.state_dict().items() if not name.startswith("weighting.")}
    given = {name: value for name, value in weights.items() if not name.startswith("weighting.")}
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


def _named(module: MultiLossModule) -> str:
    trunk_and_heads = isinstance(module, MultiTaskModule)
    return "trunk.… and tasks.<name>.head.…" if trunk_and_heads else "those of the model's state_dict"
