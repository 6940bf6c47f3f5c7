"""The command line of a sweep's job, and of a resumed sweep."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from multitask.errors import ConfigError, choices
from multitask.places import CONFIGS
from multitask.run.arguments import quoted
from multitask.system import is_first

RECORD = "sweep.json"
# Hydra's keys of how a sweep runs, which are not part of a job.
_OF_SWEEP = re.compile(r"hydra[./](mode|sweep|run|launcher|sweeper)\b")

_SET_BY_LIGHTNING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def prepend_sweep_arguments() -> None:
    """Prepend the arguments that started a sweep if the command line names it with ``sweep=<id>``."""
    given = sys.argv[1:]
    names = [a.partition("=")[2] for a in given if re.match(r"\+{0,2}sweep=", a)]
    if not names or not is_first():
        return
    name = names[-1].strip("'\"")
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ConfigError(
            f"sweep={name} cannot be the name of a folder; use letters, digits, '-', '_', '+' and '.'."
        )
    logs = _logs([a for a in given if a.startswith("paths.")])
    found = sorted(logs.glob(f"*/sweeps/{name}/{RECORD}"))
    if not found:
        # A search is a sweep even without -m.
        if not any(a in ("-m", "--multirun") or a.startswith("hparams_search=") for a in given):
            known = {path.parent.name for path in logs.glob(f"*/sweeps/*/{RECORD}")}
            raise ConfigError(f"sweep={name}: no such sweep in {logs}; {choices(name, known)}")
        return
    if len(found) > 1:
        raise ConfigError(f"sweep={name} is in {' and '.join(str(p.parent) for p in found)}; rename one.")
    sys.argv[1:] = merged(json.loads(found[0].read_text(encoding="utf-8"))["arguments"], given)


def merged(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Return the arguments of two command lines; if both set a key, the later one wins."""
    keys = {_key(argument) for argument in now if "=" in argument}
    kept = [a for a in before if a not in ("-m", "--multirun") and not ("=" in a and _key(a) in keys)]
    return ["-m", *kept, *(a for a in now if a not in ("-m", "--multirun") and a not in kept)]


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+")


def _logs(paths: Sequence[str]) -> Path:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return Path(compose("train", overrides=list(paths)).paths.logs).absolute()


@contextmanager
def as_single_run(config: DictConfig, folder: Path) -> Iterator[None]:
    """Set the command line to that of one job, and clean up its distributed state afterwards.

    Lightning starts the job's other processes with the command line. Its connection to them and its environment
    variables would otherwise outlive the job: the next job would connect to the previous one's processes.
    """
    hydra = HydraConfig.get()
    arguments, directory = sys.argv[1:], hydra.run.dir
    own = [f"--{name.replace('_', '-')}={value}" for name, value in vars(_flags(arguments)).items() if value]
    own += [o for o in (*hydra.overrides.hydra, *hydra.overrides.task) if not _OF_SWEEP.match(o)]
    own = [o for o in own if _key(o) not in ("sweep", "ckpt_path")] + [f"sweep={quoted(config.sweep)}"]
    if config.ckpt_path:
        own.append(f"ckpt_path={quoted(config.ckpt_path)}")
    sys.argv[1:] = own
    _set_run_dir(str(folder))
    environment = {name: os.environ.get(name) for name in _SET_BY_LIGHTNING}
    try:
        yield
    finally:
        sys.argv[1:] = arguments
        _set_run_dir(directory)
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        for name, value in environment.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return Hydra's own flags for the location of the config."""
    parser = argparse.ArgumentParser(add_help=False)
    for short, name in (("-cp", "--config-path"), ("-cn", "--config-name"), ("-cd", "--config-dir")):
        parser.add_argument(name, short)
    return parser.parse_known_args(arguments)[0]


def _set_run_dir(directory: str) -> None:
    hydra: Any = HydraConfig.get()
    with read_write(hydra), open_dict(hydra):
        hydra.run.dir = directory
