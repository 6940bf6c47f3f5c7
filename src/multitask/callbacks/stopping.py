"""Early stopping that a resumed run remembers."""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from multitask.errors import ConfigError, choices
from multitask.lightning.module import MultiLossModule


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's early stopping; a run that it ended and that is resumed stays ended.

    Args:
        monitor: A logged metric.
        keywords: The other arguments of Lightning's class.
    """

    def __init__(self, monitor: str, **keywords: Any) -> None:
        # Said by a sentence below rather than by a traceback; checked after validation alone.
        super().__init__(monitor, strict=False, check_on_train_epoch_end=False, **keywords)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count epochs without improvement; one in which the metric has no value, for want of labels, does not count.

        Raises:
            ConfigError: If the metric is not logged.
        """
        if not trainer.sanity_checking and self.monitor not in trainer.callback_metrics:
            raise ConfigError(
                f"callbacks.early_stopping.monitor={self.monitor} is not logged; "
                f"{choices(self.monitor, trainer.callback_metrics)}"
            )
        if isinstance(pl_module, MultiLossModule) and not trainer.sanity_checking:
            if self.monitor not in pl_module.validated:
                pl_module.warn_once(
                    "callbacks.early_stopping.monitor",
                    f"={self.monitor} has no value in epoch {trainer.current_epoch + 1}, which is neither better "
                    "nor worse than others.",
                )
                return
            value = pl_module.validated[self.monitor]
            if self.check_finite and not math.isfinite(value):
                pl_module.warn_once(
                    "callbacks.early_stopping.monitor",
                    f"={self.monitor} is {value} in epoch {trainer.current_epoch + 1}, and the run stops there; set "
                    "+callbacks.early_stopping.check_finite=false to count such epochs as worse.",
                )
        super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count; patience stays as configured."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once where the run had been stopped before the checkpoint."""
        reason = self.stopping_reason
        if reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and self.wait_count < self.patience:
            return  # resumed with more of it
        trainer.should_stop = reason != EarlyStoppingReason.NOT_STOPPED
