"""Refuses a config that lacks a group or section: set to null, removed, or misspelled."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from omegaconf import DictConfig, OmegaConf

from multitask.errors import ConfigError

# Sections that must have a _target_, and the group that sets each.
_MADE = {"data": "data", "trunk": "trunk", "weighting": "weighting", "optimizer": "optimizer"}
_SECTIONS = ("trainer", "selection", "evaluation", "paths")
_MAYBE_EMPTY = {"scheduler": "scheduler=none", "callbacks": "callbacks=default", "logger": "logger=csv"}


def check_groups(loader: ConfigLoader, overrides: Sequence[str]) -> None:
    """Refuse overrides that choose something other than a name from a group, such as ``scheduler=null``."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = override.key_or_group
        if "." in group or override.is_delete() or _chooses(override):
            continue
        # Groups with subfolders, such as task, have no options of their own.
        names, folders = loader.get_group_options(group), loader.list_groups(group)
        if names or folders:
            listed = ", ".join(names or [f"{folder}/…" for folder in folders])
            raise ConfigError(
                f"{override.input_line} chooses nothing from the group {group}; leave it out, or choose one of "
                f"{listed}."
            )


def _chooses(override: Override) -> bool:
    """Return whether all values can be names; mappings, and sweeps that are not lists, are left to Hydra."""
    value = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else (isinstance(value, list) and value) or [value]
    return not any(isinstance(each, bool | int | float | None) for each in values)


def check_sections(config: DictConfig, own: bool = False) -> None:
    """Refuse a config in which a section is missing or lacks its ``_target_``.

    A model of the user's own has no trunk and may have its own optimizer.
    """
    content = _nodes(config)
    for key, group in _MADE.items():
        node = content.get(key)
        if own and (key == "trunk" or (key == "optimizer" and node == {})):
            continue
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            raise ConfigError(f"{key} names no _target_; choose one with {group}=…")
    model = content.get("model")
    if "trained" not in content and not isinstance((model or {}).get("_target_"), str):
        raise ConfigError("model names no _target_; choose model=trunk_and_heads, or set model._target_=…")
    for key in _SECTIONS:
        if not isinstance(content.get(key), dict):
            raise ConfigError(
                f"{key} has no keys, and a run needs those of the config; keep {key} and set {key}.<key>=…"
            )
    # Scripts that read a checkpoint have neither callbacks nor loggers.
    for key, advice in _MAYBE_EMPTY.items() if "trained" not in content else ():
        if key not in content or not isinstance(content[key], dict | None):
            raise ConfigError(f"{key} is missing from the config; choose {advice}.")
    for name, node in _nodes(config.get("tasks") or OmegaConf.create()).items():
        _check_task(f"tasks.{name}", node)


def _nodes(config: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers, resolving only keys that refer to a node, such as ``${tasks.left}``."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    for key in content:
        if OmegaConf.is_interpolation(config, key) and OmegaConf.is_config(node := config[key]):
            content[key] = OmegaConf.to_container(node, resolve=False)
    return content


def _check_task(key: str, node: Any) -> None:
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"{key} names no _target_; leave it out of task=[…], or set {key}._target_=multitask.task.Task."
        )
    for part in ("head", "loss", "target"):
        if part in node and node[part] is None:
            raise ConfigError(f"{key}.{part}=null; a task needs a {part}.")
