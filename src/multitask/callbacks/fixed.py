"""Stops a run in which a callback changes a key of the Trainer that has to stay what it is."""

from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer

from multitask.errors import ConfigError
from multitask.private import averages_statistics


class Fixed(Callback):
    """Checks before each batch that accumulation and clipping are as the config says.

    Manual optimization, checkpoints and schedulers go by the config: a change would be ignored by
    some of them in silence.

    Args:
        options: The Trainer's arguments; empty where optimization is manual, which takes these keys over.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._window = options.get("accumulate_grad_batches", 1)
        self._clip = options.get("gradient_clip_val")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compare."""
        # Under manual optimization the module has taken them over, and left the Trainer none.
        window, clip = (self._window, self._clip) if pl_module.automatic_optimization else (1, None)
        if trainer.accumulate_grad_batches == window and trainer.gradient_clip_val == clip:
            return
        if averages_statistics(trainer):
            return  # Lightning's SWA passes the data once more, in one window, without a step
        key = "gradient_clip_val" if trainer.gradient_clip_val != clip else "accumulate_grad_batches"
        raise ConfigError(
            f"a callback set trainer.{key} to {getattr(trainer, key)} in the course of the run, and it has to stay as "
            f"the config says; remove the callback and set trainer.{key}."
        )
