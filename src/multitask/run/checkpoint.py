"""Reads self-contained checkpoints: weights and the config that produced them, with no code to execute."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from multitask.errors import ConfigError
from multitask.places import EMBEDDED_FILES

# Keys of the training machine and its run, which are not taken from the checkpoint.
_OF_TRAINING_MACHINE = ("paths", "run_folder", "ckpt_path", "init_from", "callbacks", "logger")


def read_file(key: str, path: str, what: str, mmap: bool = False) -> Any:
    """Return the content of a file of weights, without executing anything in it.

    ``what`` is the expected kind of file. With ``mmap``, tensors stay on disk until they are used.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{key}={path} does not exist; give {what}.")
    import torch  # deferred, so that a mistyped path fails at once

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        # A wrong file can raise any error. torch's advice, to load the file with pickle, is not passed on.
        raise ConfigError(
            f"{key}={path} cannot be read: it is cut short, or holds more than weights; give {what}."
        ) from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """Return a checkpoint's content, without executing anything in the file; refuse one without a config."""
    content = read_file("ckpt_path", os.path.expanduser(path), "a checkpoint such as …/checkpoints/best.ckpt")
    if not isinstance(content, dict) or "state_dict" not in content or not content.get("config"):
        raise ConfigError(
            f"ckpt_path={path} contains no config, so it cannot be evaluated on its own; "
            "train.py writes checkpoints with one, and init_from=… starts training from bare weights."
        )
    return content


def register_checkpoint_config() -> None:
    """Register the config of the command line's checkpoint with Hydra, under the name ``checkpoint``."""
    if {"--help", "-h"} & set(sys.argv[1:]) and not any(a.startswith("ckpt_path=") for a in sys.argv[1:]):
        ConfigStore.instance().store(name="checkpoint", node={"trained": {"run_folder": "???"}})
        return
    config = read_checkpoint(_named(sys.argv[1:]))["config"]
    own = {key: value for key, value in config.items() if key not in _OF_TRAINING_MACHINE}
    own["data"] = _relocated(config["data"], _folders_by_origin(config["paths"]))
    ConfigStore.instance().store(
        name="checkpoint", node={**own, "trained": {"run_folder": config["run_folder"]}}
    )


def _named(arguments: list[str]) -> str:
    given = [argument for argument in arguments if argument.startswith("ckpt_path=")]
    if not given:
        raise ConfigError("ckpt_path is missing; give a file: ckpt_path=<file>.")
    if any(argument in ("-m", "--multirun") for argument in arguments):
        raise ConfigError("ckpt_path names one checkpoint; give one command for each, without -m.")
    return str(OverridesParser.create().parse_override(given[-1]).value())


def _folders_by_origin(paths: dict[str, str]) -> dict[str, str]:
    """Return the folders of the training machine, each with its counterpart here, subfolders first.

    Files that came with the package there come with the package here; in a checkout they are in the data folder.
    """
    homes = {
        f"{paths.get('embedded', paths['data'])}/{name}": f"${{paths.embedded}}/{name}"
        for name in EMBEDDED_FILES
    }
    return homes | {paths[key]: f"${{paths.{key}}}" for key in ("data", "root")}


def _relocated(value: Any, homes: dict[str, str]) -> Any:
    """Return a config with paths in the training machine's folders moved to this machine's."""
    if isinstance(value, dict):
        return {key: _relocated(item, homes) for key, item in value.items()}
    if isinstance(value, list):
        return [_relocated(item, homes) for item in value]
    if isinstance(value, str):
        for home, here in homes.items():
            if value == home or value.startswith(f"{home}/"):
                return here + value[len(home) :]
    return value
