"""Checkpoints as files that stand alone: weights, the config that made them, and nothing to execute."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from multitask.errors import ConfigError
from multitask.places import EMBEDDED_FILES

# The places of the training machine; `configs/paths` says where this one does.
_OF_THE_RUN = ("paths", "run_folder", "ckpt_path", "init_from", "callbacks", "logger")


def read_file(key: str, path: str, what: str, mmap: bool = False) -> Any:
    """Return the content of a file of weights; nothing in the file is executed.

    Args:
        key: The config key that names it.
        path: The file.
        what: What it has to be, in words.
        mmap: Whether tensors stay on disk until they are used.

    Raises:
        ConfigError: If the file does not exist, or cannot be read.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{key}={path} does not exist; give {what}.")
    import torch  # here, so that a mistyped path is answered at once

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        # torch's reader runs through whatever bytes there are: any error can come out of a wrong file.
        # Its own advice, to read the file with pickle after all, is not passed on.
        raise ConfigError(
            f"{key}={path} cannot be read: it is cut short, or holds more than weights; give {what}."
        ) from error


def read_checkpoint(path: str) -> dict[str, Any]:
    """Return a checkpoint's content, weights only: nothing in the file is executed.

    Raises:
        ConfigError: If the file does not exist, is no checkpoint, or holds no config.
    """
    content = read_file("ckpt_path", os.path.expanduser(path), "a checkpoint such as …/checkpoints/best.ckpt")
    if not isinstance(content, dict) or "state_dict" not in content or not content.get("config"):
        raise ConfigError(
            f"ckpt_path={path} holds no config, so it cannot be measured by itself; "
            "train.py writes checkpoints with one, and init_from=… starts a training from bare weights."
        )
    return content


def offer_config() -> None:
    """Make the config inside the checkpoint on the command line known to Hydra as ``checkpoint``.

    Raises:
        ConfigError: If the command line names no checkpoint, or :func:`read_checkpoint` refuses it.
    """
    if {"--help", "-h"} & set(sys.argv[1:]) and not any(a.startswith("ckpt_path=") for a in sys.argv[1:]):
        ConfigStore.instance().store(name="checkpoint", node={"trained": {"run_folder": "???"}})
        return
    config = read_checkpoint(_named(sys.argv[1:]))["config"]
    own = {key: value for key, value in config.items() if key not in _OF_THE_RUN}
    own["data"] = _moved(config["data"], _homes(config["paths"]))
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


def _homes(paths: dict[str, str]) -> dict[str, str]:
    """Return what is where on the training machine, and where this machine has it, the narrower first.

    What came with the package comes with the package here; a checkout has it among the user's data.
    """
    homes = {
        f"{paths.get('embedded', paths['data'])}/{name}": f"${{paths.embedded}}/{name}"
        for name in EMBEDDED_FILES
    }
    return homes | {paths[key]: f"${{paths.{key}}}" for key in ("data", "root")}


def _moved(value: Any, homes: dict[str, str]) -> Any:
    """Return a config in which paths under the training machine's homes are under this machine's."""
    if isinstance(value, dict):
        return {key: _moved(item, homes) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, homes) for item in value]
    if isinstance(value, str):
        for home, here in homes.items():
            if value == home or value.startswith(f"{home}/"):
                return here + value[len(home) :]
    return value
