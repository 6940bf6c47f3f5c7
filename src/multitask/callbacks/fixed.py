"""Stops a run in which a callback changes accumulation or clipping."""

from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer

from multitask.errors import ConfigError
from multitask.private import averages_statistics


class Fixed(Callback):
    """Checks before each batch that accumulation and clipping are those of the config.

    Manual optimization, checkpoints and schedulers use the config; some would silently ignore a change. ``options`` are
    the Trainer's arguments.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._window = options.get("accumulate_grad_batches", 1)
        self._clip = options.get("gradient_clip_val")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Compare the Trainer's values with the config's."""
        # In manual optimization the module handles them, and has reset the Trainer's.
        window, clip = (self._window, self._clip) if pl_module.automatic_optimization else (1, None)
        if trainer.accumulate_grad_batches == window and trainer.gradient_clip_val == clip:
            return
        if averages_statistics(trainer):
            return  # Lightning's SWA passes over the data once more, in one window, without a step
        key = "gradient_clip_val" if trainer.gradient_clip_val != clip else "accumulate_grad_batches"
        raise ConfigError(
            f"a callback set trainer.{key} to {getattr(trainer, key)} during the run, and it must keep the config's "
            f"value; remove the callback and set trainer.{key}."
        )
