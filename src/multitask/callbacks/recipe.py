"""Saves the config with the weights."""

from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer

from multitask.errors import ConfigError
from multitask.weighting.base import Combiner


class Recipe(Callback):
    """Saves the resolved config in every checkpoint, so that evaluation needs only this file."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the config."""
        checkpoint["config"] = self._config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise ``ConfigError`` for several optimizers, and for one without the weighting's own parameters."""
        count = len(trainer.optimizers)
        if count != 1:
            raise ConfigError(
                f"optimizer=own: configure_optimizers gives {count or 'no'} optimizer{'s' * (count != 1)}, and all "
                "losses are combined for one; give one, with parameter groups."
            )
        weighting = pl_module.weighting
        assert isinstance(weighting, Combiner)
        trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
        if any(id(p) not in trained for p in weighting.parameters()):
            raise ConfigError(
                "optimizer=own: the weighting has parameters of its own, and configure_optimizers leaves them out; "
                "give the optimizer self.parameters(), or choose another weighting."
            )
