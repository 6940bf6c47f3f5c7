"""What every DataModule shares: three splits, and loaders over them that fit the Trainer."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset

from multitask.data.loading import Arrays, Loader, resident

Split = Arrays | Dataset[Any]


class DataModule(LightningDataModule):
    """Three splits of one data set.

    Args:
        batch_size: Examples a process and training batch; ``None`` for the whole training split.
        eval_batch_size: The same for validation and test, where it changes nothing but speed (and the
            loss of a task with ``count: batch``).
        seed: Seed of the order of the training examples.
        num_workers: Worker processes, for data that is not in memory.
    """

    def __init__(
        self, batch_size: int | None = 128, eval_batch_size: int = 1024, seed: int = 0, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.drop_last = False
        """Whether to leave out an epoch's last training batch where it is not full."""
        self.splits: dict[str, Split] = {}
        self._placed: dict[str, Split] = {}

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Return ``train``, ``val`` and ``test``; a split without examples may be left out."""

    def setup(self, stage: str | None = None) -> None:
        """Load the splits once."""
        if not self.splits:
            self.splits = self.load()

    def loader(self, split: str, *, training: bool = False) -> Loader:
        """Return batches of one split; in training batches where ``training`` is set, and shuffled then."""
        self.setup()
        size = self.batch_size if training else self.eval_batch_size
        return Loader(self.placed(split), size, **self.order(training))

    def order(self, training: bool) -> dict[str, Any]:
        """Return what a loader needs to know of order, last batch and processes.

        Not shuffled where the Trainer is to overfit a few batches, which have to be the same each epoch.
        """
        trainer = self.trainer
        return {
            "shuffle": training and not getattr(trainer, "overfit_batches", 0),
            "drop_last": training and self.drop_last,
            "seed": self.seed,
            "num_workers": self.num_workers,
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
        }

    def placed(self, split: str) -> Split:
        """Return a split, on the trainer's CUDA device where it lies in memory and is small enough to move there."""
        arrays = self.splits[split]
        if self.trainer is None or not isinstance(arrays, Mapping) or not torch.cuda.is_available():
            return arrays
        device = self.trainer.strategy.root_device
        if device.type != "cuda":
            return arrays
        if split not in self._placed:
            self._placed[split] = resident(dict(arrays), device, torch.cuda.mem_get_info(device)[0])
        return self._placed[split]

    def train_dataloader(self) -> Loader:
        """Return shuffled batches of the training split."""
        return self.loader("train", training=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return batches of the validation split, nothing where there is none."""
        return self.loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> Loader | list[Loader]:
        """Return batches of the test split, nothing where there is none."""
        return self.loader("test") if "test" in self.splits else []
