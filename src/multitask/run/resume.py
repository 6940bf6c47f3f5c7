"""Resumes a run from a checkpoint: the settings that have to agree, and the files that are copied."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitask.aliases import current
from multitask.callbacks.checkpoints import copy_checkpoint, find_kept
from multitask.errors import ConfigError
from multitask.lightning.curves import carry_over
from multitask.run.checkpoint import read_file
from multitask.run.model_choice import TRUNK_AND_HEADS

# Sections that a resumed run may not change. Optimizer, scheduler and combiner are restored from the checkpoint:
# another value in the config would be ignored silently, or the run would not end where the uninterrupted one ends.
_SAME = (
    *("seed", "model", "trunk", "tasks", "weighting", "optimizer", "parameter_groups", "scheduler", "data"),
    "trainer",
)
# Keys that older runs lack, with the value that they correspond to; for a boolean, false.
_BEFORE = {
    "data.batch_sizes": None,
    "data.collate_fn": None,
    "data.ratios": None,
    "data.temperature": 1.0,
    "weighting.memory": "rows",
    "model._target_": TRUNK_AND_HEADS,
    "model.inputs": "inputs",
}
_FREE = {
    "data": "path root eval_batch_size num_workers targets",
    "trainer": (
        "accelerator detect_anomaly deterministic devices enable_model_summary enable_progress_bar "
        "gradient_clip_algorithm gradient_clip_val inference_mode limit_test_batches log_every_n_steps max_epochs "
        "max_steps num_sanity_val_steps profiler strategy"
    ),
}


@dataclass
class Resumption:
    """A checkpoint that a run can resume from."""

    path: Path
    rows: int
    """The number of rows of metrics.csv that had been written when it was saved."""
    kept: Mapping[str, Path]
    """The best weights of its run so far, by the name of their file in the new run."""

    def begin(self, folder: Path) -> None:
        """Copy the curves and checkpoints of the stopped run to the new run's folder."""
        carry_over(self.path.resolve().parents[1] / "metrics.csv", folder / "metrics.csv", self.rows)
        copy_checkpoint(self.path, folder / "checkpoints" / "last.ckpt")
        for name, path in self.kept.items():
            copy_checkpoint(path, folder / "checkpoints" / name)


def check(path: str, config: Mapping[str, Any]) -> Resumption:
    """Return the checkpoint ``ckpt_path`` to resume from; refuse one whose run had other settings."""
    content = read_file("ckpt_path", path, "the checkpoints/last.ckpt of a run", mmap=True)
    if not isinstance(content, dict) or not {"loops", "config", "callbacks", "rows"} <= content.keys():
        raise ConfigError(
            f"ckpt_path={path} is not a run's checkpoint; to start from a state dict, set init_from."
        )
    for key, old, new in differences(content["config"], config):
        raise ConfigError(
            f"ckpt_path={path} resumes a run that had {key}={old}, and this one has {key}={new}; restore the old "
            "value, or start a new run from its weights with init_from."
        )
    epochs, most = int(content["epoch"]), config["trainer"]["max_epochs"]
    if most is not None and -1 < most < epochs:
        raise ConfigError(
            f"ckpt_path={path} was saved in epoch {epochs + 1}, and trainer.max_epochs={most} ends before; repeat the "
            "overrides of its run (overrides.yaml), or raise trainer.max_epochs."
        )
    return Resumption(Path(path), int(content["rows"]), find_kept(Path(path), content["callbacks"]))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key that may not change and has changed, with its two values."""
    for section in _SAME:
        old, new = _flat(section, before.get(section)), _flat(section, now.get(section))
        free = {f"{section}.{key}" for key in _FREE.get(section, "").split()}
        for key in sorted(old.keys() | new.keys()):
            if key not in old and (new[key] is False or (key in _BEFORE and new[key] == _BEFORE[key])):
                continue  # the behavior of runs that lack the key
            if key not in free and old.get(key) != new.get(key):
                yield key, old.get(key), new.get(key)


def _flat(key: str, value: Any) -> dict[str, Any]:
    """Return the leaves of a nested mapping by dotted key."""
    if not isinstance(value, Mapping):
        return {key: current(value) if key.endswith("._target_") else value}
    return {k: v for name, inner in value.items() for k, v in _flat(f"{key}.{name}", inner).items()}
