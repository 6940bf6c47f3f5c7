"""The time of each part of a step, and the memory of a run."""

import time
from statistics import median
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule, Trainer

from multitask import system
from multitask.lightning.module import MultiLossModule

_SECTIONS = ("data", "forward", "task gradients", "solver", "optimizer", "step")
# Steps at the start, in which caches are filled and kernels chosen.
_WARM_UP = 3
# Of fewer steps than these, the median says more about the machine than about the method.
_FEWEST = 10


class Cost(Callback):
    """Logs ``cost/…`` in seconds per step: data, forward, task gradients, solver, optimizer, the whole step.

    ``cost/peak_memory_mib`` is the most memory held so far; it and the median step are in the run's record. On a CPU
    it is the process's, so that a run which is not the first one of its process has none: it would be that of all runs.

    Args:
        synchronize: Whether to wait for a CUDA device around each section, so that its time is its own;
            otherwise a section's time there is that of handing out the work.
    """

    runs: ClassVar[int] = 0
    """How many runs this process has begun."""

    def __init__(self, synchronize: bool = False) -> None:
        self.synchronize = synchronize
        self._is_first = True
        self.steps: list[float] = []
        self._waited = self._in_step = 0.0
        self._ended: float | None = None
        self._steps_taken = 0
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure."""
        assert isinstance(pl_module, MultiLossModule)
        pl_module.now = pl_module.step.now = self._now
        self._steps_taken = trainer.global_step
        self._is_first = Cost.runs == 0
        Cost.runs += 1
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def _now(self) -> float:
        if self.synchronize and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count what passed since the last batch as waiting for data."""
        self._began = self._now()
        if self._ended is not None and batch_idx > 0:
            self._waited += self._began - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand the step's times on; those of micro-batches add up until their step is taken."""
        assert isinstance(pl_module, MultiLossModule)
        self._ended = self._now()
        self._in_step += self._ended - self._began
        if trainer.global_step == self._steps_taken:
            return
        self._steps_taken = trainer.global_step
        self.steps.append(self._in_step)
        spent = {**pl_module.times, "data": self._waited, "step": self._in_step}
        figures = [spent.get(section, 0.0) for section in _SECTIONS]
        names = [section.replace(" ", "_") for section in _SECTIONS]
        if (peak := self._peak_memory_mib()) is not None:
            figures.append(peak)
            names.append("peak_memory_mib")
        pl_module.telemetry.add("cost", torch.tensor(figures, dtype=torch.float64), names)
        pl_module.times.clear()
        self._waited = self._in_step = 0.0

    def facts(self) -> dict[str, float]:
        """Return the median seconds of a step and the peak memory, as far as they are known, for the run's record."""
        steps = self.steps[_WARM_UP:]
        peak = self._peak_memory_mib()
        found = {} if peak is None else {"peak_memory_mib": round(peak, 1)}
        return found | ({"step_seconds": round(median(steps), 6)} if len(steps) >= _FEWEST else {})

    def _peak_memory_mib(self) -> float | None:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        return system.peak_memory_mib() if self._is_first else None
