"""Checks that every ``_target_`` can be imported and takes the keys beside it."""

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from multitask.errors import ConfigError, choices

_HYDRA = ("_target_", "_args_", "_convert_", "_partial_", "_recursive_")
# Keys that are not passed to the section's constructor: when a scheduler steps, how training batches are collated,
# and options of the weighting that the training loop reads.
_APART = {
    "scheduler": ("interval", "frequency", "monitor"),
    "data": ("drop_last", "collate_fn"),
    "weighting": ("engine", "memory", "heads", "learning_rate", "rows", "every", "groups", "rescale"),
}
_RATE = re.compile(r"(^|_)(lrs?|learning_rates?)(_|$)")


def check_targets(config: Mapping[str, Any]) -> None:
    """Refuse a ``_target_`` that cannot be imported, and keys beside it that it does not take."""
    for key, node in _nodes("", config):
        made = imported(f"{key}._target_", node["_target_"])
        _check_arguments(key, node, made)


def _nodes(key: str, node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield key, node
        for name, inner in node.items():
            yield from _nodes(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(node, list):
        for i, inner in enumerate(node):
            yield from _nodes(f"{key}.{i}", inner)


def imported(key: str, target: str) -> Any:
    """Import the object that a ``_target_`` names; if there is none, the error lists similar names."""
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
            names = [name for name in dir(found) if not name.startswith("_")]
            hint = choices(part, names)
            if len(names) > 20:  # too many to list
                hint = hint.rpartition(" Choices:")[0] or "check the spelling."
            raise ConfigError(f"{key}={target}: {'.'.join(parts[:i])} has no '{part}'; {hint}") from error
    return found


def _check_arguments(key: str, node: Mapping[str, Any], made: Any) -> None:
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # not every class implemented in C has a signature
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if key.partition(".")[0] == "weighting" and "tasks" in takes:
        takes.remove("tasks")  # build_weighting passes it
    for name in node:
        if name in takes or name in _HYDRA or name in _APART.get(key, ()):
            continue
        hint = choices(str(name), takes) if takes else "it takes none."
        if _RATE.search(str(name)):
            hint += " Learning rates of parts of the model are set by parameter_groups."
        raise ConfigError(f"{key}.{name} is not an argument of {node['_target_']}; {hint}")
