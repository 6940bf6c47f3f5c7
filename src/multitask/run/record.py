"""The files of a run: ``config.yaml``, ``overrides.yaml``, ``run.json`` and ``results.csv``."""

import csv
import hashlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from multitask.run.model_choice import TRUNK_AND_HEADS

COLUMNS = (
    *("method", "seed", "task", "metric", "split", "value", "higher_is_better"),
    *("experiment", "variant", "sweep", "run", "epoch", "selection", "config_digest"),
)
PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "torchjd", "torchmetrics", "wandb", "numpy")

# The Trainer's keys that do not change what is learned.
_COSMETIC = {
    *("accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "inference_mode", "benchmark"),
    *("detect_anomaly", "profiler", "log_every_n_steps", "num_sanity_val_steps", "barebones"),
    *("enable_checkpointing", "enable_model_summary", "enable_progress_bar"),
}


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically, so that no reader sees half of it, even after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(path)


def write_results(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``results.csv`` in long form, one row per value."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


class RunRecord:
    """``run.json``: the facts about a run, updated while it runs."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.path = folder / "run.json"
        self.facts = dict(facts)

    def update(self, **facts: Any) -> None:
        """Add facts and write the file."""
        self.facts |= facts
        write_atomically(self.path, json.dumps(self.facts, indent=2, default=str) + "\n")


def save_config(folder: Path, config: Mapping[str, Any], overrides: list[str]) -> None:
    """Write the resolved config and the overrides that led to it."""
    write_atomically(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    write_atomically(folder / "overrides.yaml", yaml.safe_dump(overrides))


def digest(value: Any) -> str:
    """Return the first 12 hexadecimal digits of a value's digest."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def recipe_digest(config: Mapping[str, Any], task: str | None = None) -> str:
    """Return the digest of the settings that two values must share to be comparable, without weighting and seed.

    With a task, the recipe contains this task and no other: a task's values in a joint run and in its single-task
    baseline have the same digest.
    """
    data = {k: v for k, v in config["data"].items() if k not in ("seed", "num_workers", "targets")}
    if not data.get("drop_last"):
        data.pop("drop_last", None)  # older recipes lack the key
    for key in ("collate_fn", "batch_sizes"):
        if data.get(key) is None:
            data.pop(key, None)
    if data.get("temperature") == 1.0 and data.get("ratios") is None:
        data = {k: v for k, v in data.items() if k not in ("temperature", "ratios")}
    trainer = {k: v for k, v in config["trainer"].items() if k not in _COSMETIC}
    parts = {key: config.get(key) for key in ("optimizer", "scheduler", "selection", "init_from")}
    # A trunk that takes the task names counts as the same trunk with other tasks.
    parts["trunk"] = {k: v for k, v in config["trunk"].items() if k != "tasks"}
    if config.get("model") not in (None, {"_target_": TRUNK_AND_HEADS, "inputs": "inputs"}):
        parts["model"] = config["model"]
    if groups := of_task(config.get("parameter_groups") or {}, task):
        parts["parameter_groups"] = groups
    tasks = config["tasks"] if task is None else config["tasks"].get(task)
    recipe = json.dumps(
        {**parts, "data": data, "trainer": trainer, "task": tasks}, sort_keys=True, default=str
    )
    # The same files in another folder are the same data; in a checkout, data/ has those of the package.
    for home, name in ((config["paths"].get("embedded"), "./data"), (config["paths"]["root"], ".")):
        recipe = recipe.replace(json.dumps(str(home))[1:-1], name) if home else recipe
    return digest(recipe)


def of_task(groups: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """Return the parameter groups without those of tasks other than ``task``; all of them if it is ``None``."""
    other = re.compile(r"tasks\.(\w+)\.")
    return {p: own for p, own in groups.items() if task is None or not (m := other.match(p)) or m[1] == task}


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that affect the results."""
    from importlib.metadata import PackageNotFoundError, version  # deferred, for a fast start

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit(root: Path) -> str | None:
    """Return the commit of the source, with ``+`` if files have changed since; ``None`` outside git."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()
