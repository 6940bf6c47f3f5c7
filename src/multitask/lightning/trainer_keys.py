"""The Trainer's keys that Lightning refuses under manual optimization, with the meaning they have under automatic."""

from collections.abc import Mapping

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from multitask.lightning.sharding import clip, shards

_NEUTRAL = {"gradient_clip_val": None, "gradient_clip_algorithm": None, "accumulate_grad_batches": 1}


class TrainerKeys(Callback):
    """Takes clipping and accumulation over from a Trainer for as long as it fits a module by manual optimization.

    While optimizers and schedulers are made the Trainer shows its own values, so that
    ``estimated_stepping_batches`` is right, and the module counts as one by automatic optimization, of whose
    schedulers Lightning keeps what they monitor.
    """

    def __init__(self) -> None:
        self._kept = dict(_NEUTRAL)
        self.clips = False
        """Whether gradients are clipped."""

    @property
    def accumulate_grad_batches(self) -> int:
        """How many micro-batches a step takes."""
        return int(self._kept["accumulate_grad_batches"] or 1)

    def take(self, trainer: Trainer) -> None:
        """Take the keys over, before Lightning checks them."""
        self._kept = {key: getattr(trainer, key) for key in _NEUTRAL}
        self.clips = bool(self._kept["gradient_clip_val"])
        self._set(trainer, _NEUTRAL)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show the Trainer's own values again."""
        self._set(trainer, self._kept)
        if stage == "fit":
            pl_module.automatic_optimization = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the Trainer from acting on them."""
        self._set(trainer, _NEUTRAL)
        pl_module.automatic_optimization = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the keys back."""
        self._set(trainer, self._kept)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the keys back, for a fit that follows."""
        self._set(trainer, self._kept)

    def clip(self, module: LightningModule, optimizer: Optimizer) -> None:
        """Clip the gradients: called when they are unscaled, right before the optimizer's step."""
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
