"""Ctrl-C and SIGTERM: finish the step, save everything, stop."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from multitask.callbacks.checkpoints import Checkpoints
from multitask.errors import RunInterrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(Callback):
    """Turns the first SIGINT or SIGTERM in a fit into a checkpoint after the step in hand.

    Outside a fit, and at a second SIGINT, the run stops at once.

    Args:
        checkpoints: The callback that saves.
        window: How many batches an optimizer step takes.
    """

    def __init__(self, checkpoints: Checkpoints | None, window: int = 1) -> None:
        self._checkpoints = checkpoints
        self._window = window
        self._received: int | None = None
        self._fitting = False
        self._closing = False
        self._previous: dict[int, Any] = {}
        self._processes: Any = None

    def listen(self) -> None:
        """Take the signals, in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                previous = signal.signal(number, self._note)
                self._previous.setdefault(number, previous)

    def close(self) -> None:
        """From here on a signal only has to wait: the run is being closed."""
        self._closing = True

    def stop_listening(self) -> None:
        """Give the signals back."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self._received is not None and number == signal.SIGINT
        self._received = number
        if not self._closing and (again or not self._fitting):
            raise self._interrupted(number)

    @property
    def checkpoint(self) -> Path | None:
        """The file that the run can resume from, ``None`` if nothing was saved yet."""
        last = self._checkpoints.last if self._checkpoints else None
        return last if last and last.is_file() else None

    def _interrupted(self, number: int) -> RunInterrupted:
        return RunInterrupted(number, str(self.checkpoint) if self.checkpoint else None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the step in hand is finished first."""
        self.listen()  # again: the Trainer has put its own handler before this one
        if trainer.world_size > 1:
            # By way of the processors: waiting for a device here would have it wait for every next step.
            self._processes = dist.new_group(backend="gloo")
        self._fitting = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop before the next step if a signal came."""
        if batch_idx % self._window:
            return
        number = self._agreed()
        if number:
            if self._checkpoints is not None:
                self._checkpoints.save_before_batch(trainer)
            raise self._interrupted(number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal came after the last step, whose epoch is saved."""
        self._fitting = False
        number = self._agreed()
        if number:
            raise self._interrupted(number)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """There is no step in hand any more."""
        self._fitting = False

    def _agreed(self) -> int:
        """Return the signal that any of the processes got: all stop at the same step."""
        received = torch.tensor(self._received or 0)
        if self._processes is not None:
            dist.all_reduce(received, dist.ReduceOp.MAX, self._processes)
        return int(received)
