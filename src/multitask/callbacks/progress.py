"""A progress bar with one line per epoch and the metric that selects the weights."""

import math
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from multitask.terminal import decimal

_WIDTH = 100  # of a line in a file
# In a file: the number of lines of a run, and the longest time between two lines, in seconds.
_LINES = 20
_SECONDS = 30.0


class Progress(TQDMProgressBar):
    """A moving bar in a terminal; in a file, in which redrawing would add lines, the finished bars of some epochs.

    Args:
        monitor: The metric to show beside the bar, ``None`` for none.
    """

    def __init__(self, monitor: str | None = None) -> None:
        super().__init__(refresh_rate=5)
        self._monitor = monitor
        self._moving = sys.stdout.isatty()
        self._started = self._printed = time.monotonic()
        self._done = 0
        self._total: int | None = None
        self._line: str | None = None
        """The finished bar of an epoch that has not been printed."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metric beside the bar."""
        known = trainer.callback_metrics
        if self._monitor is None or self._monitor not in known:
            return {}
        return {self._monitor: decimal(float(known[self._monitor]))}

    def on_train_start(self, *_: Any) -> None:
        """Draw nothing before an epoch starts."""
        self.train_progress_bar = Tqdm(disable=True)
        self._total = self._batches()  # a run resumed within an epoch does not start one

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start a line."""
        self._started = time.monotonic()
        self._total = self._batches()  # now: later it is the rest of the last epoch
        if self._moving:
            self.train_progress_bar = self.init_train_tqdm()
            self.train_progress_bar.reset(total=self._total)
            self.train_progress_bar.set_description(_title(trainer))

    def _batches(self) -> int | None:
        """Return the number of batches of an epoch; ``None`` if it is unknown."""
        count = self.total_train_batches
        return int(count) if math.isfinite(count) else None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start a line if a run resumes within an epoch."""
        if self._moving and self.train_progress_bar.disable:
            self.on_train_epoch_start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar."""
        self._done = batch_idx + 1
        if self._moving:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the line."""
        if self._moving:
            super().on_train_epoch_end(trainer, pl_module)
            self.train_progress_bar.close()
        elif self.is_enabled:
            now = time.monotonic()
            shown = self.get_metrics(trainer, pl_module).items()
            self._line = Tqdm.format_meter(
                self._done,
                self._total or self._done,
                now - self._started,
                prefix=_title(trainer),
                postfix=", ".join(f"{key}={value}" for key, value in shown),
                ncols=_WIDTH,
            )
            every = max(1, _epochs(trainer) // _LINES)
            if (trainer.current_epoch + 1) % every == 0 or now - self._printed > _SECONDS:
                self._print()

    def on_train_end(self, *_: Any) -> None:
        """Print the last epoch in any case."""
        self._print()

    def _print(self) -> None:
        if self._line is not None:
            print(self._line, flush=True)
            self._line, self._printed = None, time.monotonic()

    def init_validation_tqdm(self) -> Tqdm:
        """Return a bar that is never drawn."""
        return Tqdm(disable=True)

    init_test_tqdm = init_validation_tqdm


def _epochs(trainer: Trainer) -> int:
    """Return the number of epochs of the run; 1 if it is unknown."""
    if trainer.max_epochs and trainer.max_epochs > 0:
        return trainer.max_epochs
    return max(1, math.ceil(trainer.max_steps / trainer.num_training_batches)) if trainer.max_steps > 0 else 1


def _title(trainer: Trainer) -> str:
    of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"Epoch {trainer.current_epoch + 1}{of}"
