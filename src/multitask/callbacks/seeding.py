"""Random numbers of a training step that depend on the step alone."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from multitask.randomness import derived_seed, seed


class StepSeed(Callback):
    """Seeds torch before each training batch by seed, epoch, batch and rank.

    Dropout, noise and sampled weights are then the same whether the run came here without a stop or
    was resumed, and no random state needs to be saved.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch's generators."""
        number = derived_seed("step", self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        seed(number, pl_module.device)
