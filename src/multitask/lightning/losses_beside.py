"""Mean losses on a split for modules that override ``test_step``."""

import sys
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer

from multitask.lightning.figures import Figures
from multitask.lightning.means import MeanLosses

if TYPE_CHECKING:
    from multitask.lightning.module import MultiLossModule


class LossesBeside(Callback):
    """Computes the losses after the module's own test step, so that every run records them.

    If the losses of a batch cannot be computed, for example without labels, they are omitted with one warning.
    """

    def __init__(self) -> None:
        self.figures: Figures = {}
        """The mean losses over all processes, after the test."""
        self._means = MeanLosses()
        self._failed = False

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: "LightningModule | MultiLossModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        if self._failed:
            return
        try:
            with torch.enable_grad():
                losses, counts = pl_module.named_losses(batch)  # type: ignore[operator]
        except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
            self._failed = True
            print(
                f"warning: the model has its own test step, and losses(batch) fails on its batches "
                f"({type(error).__name__}: {error}); the record has no losses of this split.",
                file=sys.stderr,
            )
            return
        self._means.add({name: loss.detach() for name, loss in losses.items()}, counts)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the means."""
        if not self._failed:
            self.figures = {(name, "loss"): value for name, value in self._means.by_name().items()}
