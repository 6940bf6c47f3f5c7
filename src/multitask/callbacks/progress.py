"""A progress bar of one line an epoch, with the figure that chooses the weights."""

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

_WIDTH = 100  # of a line in a file


class Progress(TQDMProgressBar):
    """A moving bar on a terminal; in a file, where each redrawing would be one more line, the finished bar.

    Args:
        monitor: The metric to show beside the bar, ``None`` for none.
    """

    def __init__(self, monitor: str | None = None) -> None:
        super().__init__(refresh_rate=5)
        self._monitor = monitor
        self._moving = sys.stdout.isatty()
        self._started = time.monotonic()
        self._done = 0

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar."""
        known = trainer.callback_metrics
        if self._monitor is None or self._monitor not in known:
            return {}
        return {self._monitor: f"{float(known[self._monitor]):.4f}"}

    def on_train_start(self, *_: Any) -> None:
        """Draw nothing before an epoch begins."""
        self.train_progress_bar = Tqdm(disable=True)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin a line."""
        self._started = time.monotonic()
        if self._moving:
            self.train_progress_bar = self.init_train_tqdm()
            self.train_progress_bar.reset(total=int(self.total_train_batches))
            self.train_progress_bar.set_description(_title(trainer))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin a line where a resumed run goes on in the middle of an epoch."""
        if self._moving and self.train_progress_bar.disable:
            self.on_train_epoch_start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        self._done = batch_idx + 1
        if self._moving:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the line."""
        if self._moving:
            super().on_train_epoch_end(trainer, pl_module)
            self.train_progress_bar.close()
        elif self.is_enabled:
            postfix = ", ".join(
                f"{key}={value}" for key, value in self.get_metrics(trainer, pl_module).items()
            )
            print(
                Tqdm.format_meter(
                    self._done,
                    int(self.total_train_batches),
                    time.monotonic() - self._started,
                    prefix=_title(trainer),
                    postfix=postfix,
                    ncols=_WIDTH,
                ),
                flush=True,
            )

    def init_validation_tqdm(self) -> Tqdm:
        """Return a bar that is never drawn."""
        return Tqdm(disable=True)

    def init_test_tqdm(self) -> Tqdm:
        """Return a bar that is never drawn."""
        return Tqdm(disable=True)


def _title(trainer: Trainer) -> str:
    of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"Epoch {trainer.current_epoch + 1}{of}"
