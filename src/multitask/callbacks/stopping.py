"""Early stopping that works across resumed runs."""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from multitask.errors import ConfigError, choices
from multitask.lightning.module import MultiLossModule


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's early stopping by a logged metric; a run that it has ended stays ended when resumed."""

    def __init__(self, monitor: str, **keywords: Any) -> None:
        # An unknown metric is reported below, in one sentence; the metric is checked only after validation.
        super().__init__(monitor, strict=False, check_on_train_epoch_end=False, **keywords)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count epochs without improvement; an epoch in which the metric has no value does not count.

        Raises ``ConfigError`` if the metric is not logged.
        """
        if trainer.sanity_checking:
            return
        key, epoch = "callbacks.early_stopping.monitor", trainer.current_epoch + 1
        if self.monitor not in trainer.callback_metrics:
            raise ConfigError(
                f"{key}={self.monitor} is not logged; {choices(self.monitor, trainer.callback_metrics)}"
            )
        if isinstance(pl_module, MultiLossModule):
            value = pl_module.validated.get(self.monitor)
            if value is None:
                pl_module.warn_once(
                    key, f"={self.monitor} has no value in epoch {epoch}, which does not count."
                )
                return
            if self.check_finite and not math.isfinite(value):
                pl_module.warn_once(
                    key,
                    f"={self.monitor} is {value} in epoch {epoch}, and the run stops there; set "
                    "+callbacks.early_stopping.check_finite=false to count such epochs as worse.",
                )
        super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count; patience stays as configured."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once if the run had ended before the checkpoint."""
        reason = self.stopping_reason
        if reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and self.wait_count < self.patience:
            return  # resumed with more patience
        trainer.should_stop = reason != EarlyStoppingReason.NOT_STOPPED
