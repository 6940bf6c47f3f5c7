"""Makes the random numbers of a training step depend only on the step."""

from typing import Any

from lightning import Callback, Trainer

from multitask.randomness import derived_seed, seed


class StepSeed(Callback):
    """Seeds torch before each training batch from seed, epoch, batch and rank.

    Dropout, noise and sampled weights are then the same in an uninterrupted and a resumed run, without saving random
    states.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Seed torch's generators."""
        number = derived_seed("step", self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        seed(number, pl_module.device)
