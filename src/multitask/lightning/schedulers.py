"""Scheduler steps that Lightning leaves to the module, or takes only after the checkpoint."""

import math
from typing import TYPE_CHECKING, Literal

from lightning import LightningModule
from torch.optim.lr_scheduler import ReduceLROnPlateau

if TYPE_CHECKING:
    from multitask.lightning.module import MultiLossModule


def step_schedulers(module: LightningModule, batch_idx: int) -> None:
    """Step the schedulers that monitor no metric, after an optimizer step under manual optimization."""
    trainer = module.trainer
    for config in trainer.lr_scheduler_configs:
        if config.interval == "step":
            count = batch_idx + 1
        elif trainer.is_last_batch:
            count = trainer.current_epoch + 1
        else:
            continue
        if count % config.frequency == 0 and not isinstance(config.scheduler, ReduceLROnPlateau):
            config.scheduler.step()


def step_plateau_schedulers(
    module: "MultiLossModule", interval: Literal["epoch", "step"], count: int
) -> None:
    """Step the schedulers that monitor a metric: after an epoch with validation, or after batches once validated.

    Lightning steps them after the checkpoint, so that a resumed run would miss a step;
    ``MultiLossModule.lr_scheduler_step`` therefore skips them. ``count`` is the number of epochs that have ended, or of
    batches in the epoch. Raises ``KeyError`` if validation does not log the metric ``scheduler.monitor``.
    """
    known = module.validated
    if not known or (interval == "epoch" and known["epoch"] != module.current_epoch):
        return
    for config in module.trainer.lr_scheduler_configs:
        if not isinstance(config.scheduler, ReduceLROnPlateau) or config.interval != interval:
            continue
        monitor = module.scheduler_options.get("monitor") or config.monitor
        if monitor not in module.validation_keys:
            known_keys = ", ".join(sorted(module.validation_keys))
            raise KeyError(f"scheduler.monitor={monitor} was not logged; choose one of {known_keys}.")
        value = known.get(monitor, math.nan)
        if not math.isfinite(value):
            module.warn_once(
                "scheduler.monitor",
                f"={monitor} has no finite value in epoch {module.current_epoch + 1}; the scheduler waits for one.",
            )
        elif count % config.frequency == 0:
            config.scheduler.step(value)
