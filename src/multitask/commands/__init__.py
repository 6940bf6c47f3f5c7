"""The command ``multitask``, which runs every script from any folder."""

import os
import runpy
import sys
from pathlib import Path

from multitask.places import CONFIGS, ROOT

COMMANDS = {
    "train": "train one run, or with -m a sweep",
    "eval": "evaluate a checkpoint",
    "predict": "write a checkpoint's predictions to a table or arrays",
    "export": "write a checkpoint's model to a file of torch.export or ONNX",
    "compare": "compare the runs of sweeps",
    "baselines": "record the results of tasks trained alone",
    "benchmark": "measure the cost of a step",
    "dashboard": "build the W&B workspace of a comparison",
    "trajectories": "draw the trajectories of a toy problem's runs",
    "trace": "list the files that one training step runs through",
    "new": "create a project of your own",
}
"""The description of each command; a command is a module of this package."""


def main() -> None:
    """Run the command that ``sys.argv`` names, as ``python -m`` would.

    It uses the logs, data and Python modules of the current folder, and the configs in ``configs/`` in addition to
    those of the package.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(_help())
        return
    if name not in COMMANDS:
        sys.exit(f"error: multitask {name} is not a command; choose one of {', '.join(COMMANDS)}.")
    folder = Path.cwd()
    os.environ[ROOT] = str(folder)
    sys.path.insert(0, str(folder))
    sys.argv[1:] = [*_own_configs(folder, arguments), *arguments] if name != "new" else arguments
    # As the main module: Lightning and multiprocessing start further processes of the command through it.
    runpy.run_module(f"multitask.commands.{name}", run_name="__main__", alter_sys=True)


def _own_configs(folder: Path, arguments: list[str]) -> list[str]:
    configs = folder / "configs"
    given = any(a.startswith(("--config-dir", "-cd", "--config-path", "-cp")) for a in arguments)
    own = configs.is_dir() and not given and configs.resolve() != CONFIGS.resolve()
    return [f"--config-dir={configs}"] if own else []


def _help() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return f"usage: multitask <command> key=value …\n\n{listed}\n\nmultitask <command> --help explains each."
