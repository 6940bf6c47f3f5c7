"""Logs the time of each part of a step, and the peak memory of a run."""

import time
from statistics import median
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule, Trainer

from multitask import system
from multitask.lightning.module import MultiLossModule

_SECTIONS = ("data", "forward", "task gradients", "solver", "optimizer", "step")
# The first steps, which fill caches and select kernels, are not measured.
_WARM_UP = 3
# With fewer steps, the median says more about the machine than about the method.
_FEWEST = 10


class Cost(Callback):
    """Logs ``cost/…`` in seconds per step: data, forward, task gradients, solver, optimizer, the whole step.

    ``cost/peak_memory_mib`` is the peak memory so far; it and the median step time are in the run's record. On a CPU
    it is measured for the whole process, so only the first run of a process has it.

    Args:
        synchronize: Whether to wait for a CUDA device around each section; otherwise a section's time on the device
            is only that of launching its kernels.
    """

    runs: ClassVar[int] = 0
    """The number of runs that this process has started."""

    def __init__(self, synchronize: bool = False) -> None:
        self.synchronize = synchronize
        self._is_first = True
        self.steps: list[float] = []
        self._waited = self._in_step = 0.0
        self._ended: float | None = None
        self._steps_taken = 0
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the clock."""
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

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch as waiting for data."""
        self._began = self._now()
        if self._ended is not None and batch_idx > 0:
            self._waited += self._began - self._ended

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the step's times; those of micro-batches add up until the optimizer step."""
        assert isinstance(pl_module, MultiLossModule)
        self._ended = self._now()
        self._in_step += self._ended - self._began
        if trainer.global_step == self._steps_taken:
            return
        self._steps_taken = trainer.global_step
        self.steps.append(self._in_step)
        spent = {**pl_module.times, "data": self._waited, "step": self._in_step}
        costs = {section.replace(" ", "_"): spent.get(section, 0.0) for section in _SECTIONS}
        if (peak := self._peak_memory_mib()) is not None:
            costs["peak_memory_mib"] = peak
        pl_module.telemetry.add("cost", torch.tensor([*costs.values()], dtype=torch.float64), [*costs])
        pl_module.times.clear()
        self._waited = self._in_step = 0.0

    def facts(self) -> dict[str, float]:
        """Return the median seconds per step and the peak memory for the run's record, if they are known."""
        steps = self.steps[_WARM_UP:]
        peak = self._peak_memory_mib()
        found = {} if peak is None else {"peak_memory_mib": round(peak, 1)}
        return found | ({"step_seconds": round(median(steps), 6)} if len(steps) >= _FEWEST else {})

    def _peak_memory_mib(self) -> float | None:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        return system.peak_memory_mib() if self._is_first else None
