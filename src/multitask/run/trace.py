"""Records the files of the package that one training step runs through."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

import multitask
from multitask.run.build import build_data, build_module
from multitask.run.console import quiet
from multitask.run.data import bare_trainer, training_data
from multitask.run.resolvers import plain

_ROOT = Path(multitask.__file__).parent


class Trace:
    """The number of calls into each of the package's files while a function runs, and of changes of file."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.changes = 0
        self._last = ""

    def record(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function wrapped so that its calls are recorded."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            sys.setprofile(self._seen)
            try:
                return function(*args, **kwargs)
            finally:
                sys.setprofile(None)

        return recorded

    def _seen(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        path = Path(frame.f_code.co_filename)
        if _ROOT not in path.parents:
            return
        name = path.relative_to(_ROOT).as_posix()
        self.changes += bool(self._last) and name != self._last
        self._last = name
        self.files[name] += 1


def trace_step(config: DictConfig) -> Trace:
    """Record the third training step of a run, after caches are filled, without callbacks and loggers."""
    quiet()
    data = build_data(config)
    module = build_module(config, data)
    options = plain(config.trainer)
    keys = ("accelerator", "precision", "accumulate_grad_batches", "gradient_clip_val", "inference_mode")
    trainer = bare_trainer(**{key: options[key] for key in keys}, max_steps=3, limit_val_batches=0)
    trace, plain_step = Trace(), module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        step = trace.record(plain_step) if batch_idx == 3 * module.window - 1 else plain_step
        return step(batch, batch_idx)

    module.training_step = training_step  # type: ignore[method-assign]
    trainer.fit(module, datamodule=training_data(data))
    return trace
