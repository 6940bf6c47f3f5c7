"""On Ctrl-C and SIGTERM, finishes the step, saves the state and stops."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from multitask.callbacks.checkpoints import Checkpoints
from multitask.errors import RunInterrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(Callback):
    """Answers the first SIGINT or SIGTERM during a fit with a checkpoint after the current step.

    Outside a fit, and on a second SIGINT, the run stops at once. ``window`` is the number of batches per step.
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
        """Install the signal handlers, in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                previous = signal.signal(number, self._note)
                self._previous.setdefault(number, previous)

    def close(self) -> None:
        """Ignore signals from now on, while the run is being closed."""
        self._closing = True

    def stop_listening(self) -> None:
        """Restore the previous signal handlers."""
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self._received is not None and number == signal.SIGINT
        self._received = number
        if not self._closing and (again or not self._fitting):
            self._stop(number)

    @property
    def checkpoint(self) -> Path | None:
        """The file to resume from, ``None`` if nothing was saved yet."""
        last = self._checkpoints.last if self._checkpoints else None
        return last if last and last.is_file() else None

    def _stop(self, number: int) -> NoReturn:
        raise RunInterrupted(number, str(self.checkpoint) if self.checkpoint else None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the current step on a signal from now on."""
        self.listen()  # again: the Trainer has installed its own handler
        if trainer.world_size > 1:
            # On the CPU: a collective on the device would synchronize with it at every step.
            self._processes = dist.new_group(backend="gloo")
        self._fitting = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Save and stop before the next step if a signal was received."""
        if batch_idx % self._window == 0 and (number := self._agreed()):
            if self._checkpoints is not None:
                self._checkpoints.save_before_batch(trainer)
            self._stop(number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal was received after the last step, whose epoch is saved."""
        self._fitting = False
        if number := self._agreed():
            self._stop(number)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop at once on a signal from now on."""
        self._fitting = False

    def _agreed(self) -> int:
        """Return the signal that any process received, so that all stop at the same step."""
        received = torch.tensor(self._received or 0)
        if self._processes is not None:
            dist.all_reduce(received, dist.ReduceOp.MAX, self._processes)
        return int(received)
