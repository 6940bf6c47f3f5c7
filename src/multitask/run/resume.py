"""Going on with a run that was stopped: what has to be the same, and what comes along."""

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

# A checkpoint's optimizer, scheduler and combiner continue as they were: here another value in the
# config would be ignored in silence, or break the promise that a resumed run ends where the whole
# run ends.
_SAME = (
    *("seed", "model", "trunk", "tasks", "weighting", "optimizer", "parameter_groups", "scheduler", "data"),
    "trainer",
)
# Keys that there were not always, and what a run did before; a switch was off.
_BEFORE = {
    "data.batch_sizes": None,
    "data.collate_fn": None,
    "data.ratios": None,
    "data.temperature": 1.0,
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
    """The best weights of its run so far, by the name of the file that they go to."""

    def begin(self, folder: Path) -> None:
        """Begin a run's folder with the curves and checkpoints of the run that was stopped."""
        carry_over(self.path.resolve().parents[1] / "metrics.csv", folder / "metrics.csv", self.rows)
        copy_checkpoint(self.path, folder / "checkpoints" / "last.ckpt")
        for name, found in self.kept.items():
            copy_checkpoint(found, folder / "checkpoints" / name)


def check(path: str, config: Mapping[str, Any]) -> Resumption:
    """Return the checkpoint and its run.

    Args:
        path: ``ckpt_path``.
        config: The resolved config.

    Raises:
        ConfigError: If there is no such checkpoint, it cannot be read, or its run was another one.
    """
    content = read_file("ckpt_path", path, "the checkpoints/last.ckpt of a run", mmap=True)
    if not isinstance(content, dict) or not {"loops", "config", "callbacks", "rows"} <= content.keys():
        raise ConfigError(
            f"ckpt_path={path} is no checkpoint of a run; to start from a state dict, give it as init_from."
        )
    for key, there, here in differences(content["config"], config):
        raise ConfigError(
            f"ckpt_path={path} resumes a run that had {key}={there}, and this one has {key}={here}; set it as it "
            "was, or start a new run from its weights with init_from."
        )
    epochs, most = int(content["epoch"]), config["trainer"]["max_epochs"]
    if most is not None and -1 < most < epochs:
        raise ConfigError(
            f"ckpt_path={path} is of epoch {epochs + 1}, and trainer.max_epochs={most} ends before; repeat the "
            "overrides of its run (overrides.yaml), or raise trainer.max_epochs."
        )
    return Resumption(Path(path), int(content["rows"]), find_kept(Path(path), content["callbacks"]))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key that has to be the same and is not, with its two values."""
    for section in _SAME:
        old, new = _flat(section, there.get(section)), _flat(section, here.get(section))
        free = {f"{section}.{key}" for key in _FREE.get(section, "").split()}
        for key in sorted(old.keys() | new.keys()):
            if key not in old and (new[key] is False or (key in _BEFORE and new[key] == _BEFORE[key])):
                continue  # what a run from before there was the key did
            if key not in free and old.get(key) != new.get(key):
                yield key, old.get(key), new.get(key)


def _flat(key: str, value: Any) -> dict[str, Any]:
    """Return the leaves by dotted key."""
    if not isinstance(value, Mapping):
        return {key: current(value) if key.endswith("._target_") else value}
    return {k: v for name, inner in value.items() for k, v in _flat(f"{key}.{name}", inner).items()}
