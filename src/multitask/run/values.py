"""The values that each key takes, checked before anything heavy is imported."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multitask.errors import ConfigError, choices


@dataclass(frozen=True)
class Number:
    """A number, at least ``least``."""

    least: float | None = None
    whole: bool = False
    optional: bool = False

    def takes(self, value: Any) -> bool:
        """Return whether a value is such a number."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.least is None or bool(value >= self.least)

    def __str__(self) -> str:
        bound = "" if self.least is None else f" of at least {self.least:g}"
        return f"a {'whole ' if self.whole else ''}number{bound}{', or null' if self.optional else ''}"


@dataclass(frozen=True)
class OneOf:
    """One of a few names."""

    names: tuple[str, ...]
    optional: bool = False

    def takes(self, value: Any) -> bool:
        """Return whether a value is one of the names."""
        return value in self.names or (self.optional and value is None)

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}{', or null' if self.optional else ''}"


@dataclass(frozen=True)
class Switch:
    """True or false."""

    def takes(self, value: Any) -> bool:
        """Return whether a value is true or false."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


_COUNT = Number(1, whole=True)
_SHARE_OR_COUNT = Number(0)
Values = dict[str, Number | OneOf | Switch]
"""The values that each key takes."""

COMPARE: Values = {"accept_other_baseline": Switch(), "difference": Number(0)}
BENCHMARK: Values = {
    "quick": Switch(),
    "seconds": Number(0, optional=True),
    "rounds": Number(1, whole=True, optional=True),
    "threads": _COUNT,
    "seed": Number(0, whole=True),
}
OF_CHECKPOINT: Values = {
    "split": OneOf(("train", "val", "test")),
    "format": OneOf(("torch", "onnx")),
    "dynamic": Switch(),
}
"""The keys of predict.py and export.py beside those of a run."""
TRAIN: Values = {
    "seed": Number(0, whole=True),
    "selection.mode": OneOf(("min", "max")),
    "data.batch_size": Number(1, whole=True, optional=True),
    "data.eval_batch_size": _COUNT,
    "data.drop_last": Switch(),
    "data.num_workers": Number(0, whole=True),
    "optimizer.lr": Number(0),
    "optimizer.weight_decay": Number(0),
    "optimizer.momentum": Number(0),
    "scheduler.interval": OneOf(("epoch", "step")),
    "scheduler.frequency": _COUNT,
    "scheduler.step_size": _COUNT,
    "scheduler.T_max": _COUNT,
    "scheduler.patience": Number(0, whole=True),
    "trainer.max_epochs": Number(-1, whole=True, optional=True),
    "trainer.max_steps": Number(-1, whole=True),
    "trainer.num_nodes": _COUNT,
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.gradient_clip_val": Number(0, optional=True),
    "trainer.gradient_clip_algorithm": OneOf(("norm", "value"), optional=True),
    "trainer.check_val_every_n_epoch": Number(1, whole=True, optional=True),
    "trainer.val_check_interval": Number(0),
    "trainer.limit_train_batches": _SHARE_OR_COUNT,
    "trainer.limit_val_batches": _SHARE_OR_COUNT,
    "trainer.limit_test_batches": _SHARE_OR_COUNT,
    "trainer.overfit_batches": _SHARE_OR_COUNT,
    "trainer.num_sanity_val_steps": Number(-1, whole=True),
    "trainer.log_every_n_steps": _COUNT,
    "trainer.enable_progress_bar": Switch(),
    "trainer.enable_model_summary": Switch(),
    "trainer.detect_anomaly": Switch(),
    "weighting.learning_rate": Number(0, optional=True),
    "logger.wandb.mode": OneOf(("offline", "online", "disabled")),
    "task_check": Switch(),
    "compile": Switch(),
}


def check_values(config: DictConfig, values: Values) -> None:
    """Refuse a value that its key does not take.

    Args:
        config: Of a script.
        values: The values that the script's keys take.
    """
    for key, value in _given(config, values):
        takes = values[key]
        if not takes.takes(value):
            hint = f"; {choices(str(value), takes.names)}" if isinstance(takes, OneOf) else "."
            raise ConfigError(f"{key}={value} is not {takes}{hint}")


def _given(config: DictConfig, values: Values) -> Iterator[tuple[str, Any]]:
    nothing = object()
    for key in values:
        try:
            value = OmegaConf.select(config, key, default=nothing)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {' '.join(str(error).split())}") from error
        if value is not nothing:
            yield key, value
