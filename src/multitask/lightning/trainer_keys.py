"""Clipping and accumulation by the Trainer's arguments under manual optimization, where Lightning rejects them."""

from collections.abc import Mapping

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from multitask.lightning.sharding import clip, shards

_NEUTRAL = {"gradient_clip_val": None, "gradient_clip_algorithm": None, "accumulate_grad_batches": 1}


class TrainerKeys(Callback):
    """Takes over a Trainer's clipping and accumulation while it fits a module by manual optimization.

    While optimizers and schedulers are configured, the Trainer has its own values again, so that
    ``estimated_stepping_batches`` is correct, and the module pretends to use automatic optimization, since Lightning
    otherwise drops what schedulers monitor.
    """

    def __init__(self) -> None:
        self._kept = dict(_NEUTRAL)
        self.clips = False
        """Whether gradients are clipped."""

    @property
    def window(self) -> int:
        """Number of micro-batches per step."""
        return int(self._kept["accumulate_grad_batches"] or 1)

    def take(self, trainer: Trainer) -> None:
        """Take over the arguments before Lightning checks them."""
        self._kept = {key: getattr(trainer, key) for key in _NEUTRAL}
        self.clips = bool(self._kept["gradient_clip_val"])
        self._set(trainer, _NEUTRAL)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the Trainer's values while optimizers are configured."""
        self._set(trainer, self._kept)
        if stage == "fit":
            pl_module.automatic_optimization = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set neutral values, so that the Trainer does not act on the arguments."""
        self._set(trainer, _NEUTRAL)
        pl_module.automatic_optimization = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the Trainer's values."""
        self._set(trainer, self._kept)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the Trainer's values for a later fit."""
        self._set(trainer, self._kept)

    def clip(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Clip the unscaled gradients, right before the optimizer's step."""
        value, algorithm = self._kept["gradient_clip_val"], self._kept["gradient_clip_algorithm"]
        if shards(module.trainer):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            clip(parameters, float(value), algorithm)  # type: ignore[arg-type]
        else:
            module.clip_gradients(optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm)  # type: ignore[arg-type]

    @staticmethod
    def _set(trainer: Trainer, values: Mapping[str, object]) -> None:
        for key, value in values.items():
            setattr(trainer, key, value)
