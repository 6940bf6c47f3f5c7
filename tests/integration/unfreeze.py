"""Users' callbacks that freeze the trunk's first layer and its norm until an epoch."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch.optim import Optimizer


class ByHand(Callback):
    """Freezes before the optimizer is made, and again when the fit starts."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._train(pl_module, False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train(pl_module, False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            self._train(pl_module, True)

    def _train(self, module: Any, on: bool) -> None:
        module.trunk[0].requires_grad_(on)
        module.trunk[1].train(on)


class Finetuning(BaseFinetuning):
    """Lightning's finetuning callback, with its own learning rate."""

    def __init__(self, epoch: int, rate: float) -> None:
        super().__init__()
        self.epoch = epoch
        self.rate = rate

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.trunk[0])  # type: ignore[index]

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch == self.epoch:
            self.unfreeze_and_add_param_group(pl_module.trunk[0], optimizer, lr=self.rate)  # type: ignore[index]
