"""Where the time of a step goes, and how much memory a run takes."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from multitask.lightning.module import MultiLossModule

_SECTIONS = ("data", "forward", "task gradients", "solver", "optimizer", "step")
# Steps at the start, in which caches are filled and kernels chosen.
_WARM_UP = 3


class Cost(Callback):
    """Logs ``cost/…`` in seconds a step: data, forward, task gradients, solver, optimizer, the whole step.

    ``cost/peak_memory_mib`` is the most memory held so far; it and the median step are in the run's record.

    Args:
        synchronize: Whether to wait for a CUDA device around each section, so that its time is its own;
            otherwise a section's time there is that of handing out the work.
    """

    def __init__(self, synchronize: bool = False) -> None:
        self.synchronize = synchronize
        self.steps: list[float] = []
        self._spent: dict[str, float] = {}
        self._ended: float | None = None
        self._steps_taken = 0
        self._began = 0.0
        self._mark = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module a clock."""
        assert isinstance(pl_module, MultiLossModule)
        pl_module.clock = self._clock
        self._steps_taken = trainer.global_step
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def _clock(self, section: str) -> Iterator[None]:
        start = self._now()
        yield
        self._add(section, self._now() - start)

    def _now(self) -> float:
        if self.synchronize and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _add(self, section: str, seconds: float) -> None:
        self._spent[section] = self._spent.get(section, 0.0) + seconds

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count what passed since the last batch as waiting for data."""
        self._began = self._now()
        if self._ended is not None and batch_idx > 0:
            self._add("data", self._began - self._ended)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Begin the backward pass of automatic optimization."""
        self._mark = self._now()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the backward pass of automatic optimization."""
        self._add("task gradients", self._now() - self._mark)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Begin the optimizer's step of automatic optimization."""
        self._mark = self._now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand the step's times on; those of micro-batches add up until their step is taken."""
        assert isinstance(pl_module, MultiLossModule)
        self._ended = self._now()
        self._add("step", self._ended - self._began)
        if trainer.global_step == self._steps_taken:
            return
        self._steps_taken = trainer.global_step
        if pl_module.automatic_optimization:
            self._add("optimizer", self._ended - self._mark)
        self.steps.append(self._spent["step"])
        figures = [*(self._spent.get(section, 0.0) for section in _SECTIONS), peak_memory_mib()]
        names = [*(section.replace(" ", "_") for section in _SECTIONS), "peak_memory_mib"]
        pl_module.telemetry.add("cost", torch.tensor(figures, dtype=torch.float64), names)
        self._spent = {}

    def facts(self) -> dict[str, float]:
        """Return the median seconds of a step and the peak memory, for the run's record."""
        steps = self.steps[_WARM_UP:] or self.steps
        found = {"peak_memory_mib": round(peak_memory_mib(), 1)}
        return found | ({"step_seconds": round(median(steps), 6)} if steps else {})


def peak_memory_mib() -> float:
    """Return the most memory held so far, in MiB: of the CUDA device where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)
