"""Manual optimization that means by the Trainer's keys what automatic optimization means."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from multitask.task import Batch

if TYPE_CHECKING:
    from multitask.module import MultiTaskModule


class ManualOptimization:
    """Accumulation, clipping and scheduler stepping for gradients that are written by hand.

    Micro-batches are kept until their window is full, so that what each loss is a mean over is
    known before the first backward pass.

    Args:
        fill: Fills the gradients from a window of micro-batches; returns the tasks that are labelled in
            it, and whether scaled gradients overflowed, so that the loss scaler skips the step.
        gradient_clip_val: As the Trainer's key of the same name.
        gradient_clip_algorithm: As the Trainer's key of the same name.
        accumulate_grad_batches: As the Trainer's key of the same name.
    """

    def __init__(
        self,
        fill: Callable[["MultiTaskModule", Sequence[Batch]], tuple[list[int], bool]],
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = None,
        accumulate_grad_batches: int = 1,
    ) -> None:
        self._fill = fill
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accumulate_grad_batches = accumulate_grad_batches
        self._window: list[Batch] = []

    def step(self, module: "MultiTaskModule", batch: Batch, batch_idx: int) -> None:
        """Keep the micro-batch; at the end of its window fill the gradients and step."""
        if module.trainer.fit_loop._skip_backward:
            # Lightning's SWA passes the data once more, for the running statistics of the averaged weights.
            with torch.no_grad():
                module(batch)
            return
        self._window.append(batch)
        trainer = module.trainer
        if (batch_idx + 1) % self.accumulate_grad_batches and not trainer.is_last_batch:
            return
        optimizer = module.optimizers()
        assert not isinstance(optimizer, list)
        present, overflow = self._fill(module, self._window)
        if present:
            with module.clock("optimizer"):
                optimizer.step()
            if not overflow:
                module.after_step(self._window, present)
        optimizer.zero_grad()
        self._window = []
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step":
                count = batch_idx + 1
            elif trainer.is_last_batch:
                count = trainer.current_epoch + 1
            else:
                continue
            if count % config.frequency == 0 and not isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step()

    def clip(self, module: "MultiTaskModule", optimizer: Optimizer) -> None:
        """Clip the gradients: called when they are unscaled, right before the step."""
        if self.gradient_clip_val:
            module.clip_gradients(
                optimizer,
                gradient_clip_val=self.gradient_clip_val,
                gradient_clip_algorithm=self.gradient_clip_algorithm,
            )


def step_plateau_schedulers(
    module: "MultiTaskModule", interval: Literal["epoch", "step"], count: int
) -> None:
    """Step the schedulers that watch a metric: by epochs with a validation, or by batches once there was one.

    Lightning steps them after the checkpoint, so that a resumed run would miss a step; see
    ``MultiTaskModule.lr_scheduler_step``, which leaves them to this function.

    Args:
        module: The module.
        interval: What has ended.
        count: How many epochs have ended, or batches of the epoch.

    Raises:
        KeyError: If the metric that ``scheduler.monitor`` names is none that validation logs.
    """
    known = module.validated
    if not known or (interval == "epoch" and known["epoch"] != module.current_epoch):
        return
    keys = module.validation_keys
    # Not the config's: Lightning forgets it under manual optimization.
    monitor = module.scheduler_options.get("monitor", "")
    for config in module.trainer.lr_scheduler_configs:
        if not isinstance(config.scheduler, ReduceLROnPlateau) or config.interval != interval:
            continue
        if monitor not in keys:
            raise KeyError(
                f"scheduler.monitor={monitor} was not logged; choose one of {', '.join(sorted(keys))}."
            )
        value = known.get(monitor, math.nan)
        if not math.isfinite(value):
            module.warn_once(
                "scheduler.monitor",
                f"={monitor} has no finite value in epoch {module.current_epoch + 1}; it waits for one.",
            )
        elif count % config.frequency == 0:
            config.scheduler.step(value)
