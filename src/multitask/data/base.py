"""The base of every DataModule: three splits, and loaders over them that fit the Trainer."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from multitask.data.batches import mapped
from multitask.data.loading import Arrays, Collate, Loader, resident, split_indices
from multitask.metrics.precision import home

SPLITS = ("train", "val", "test")
Split = Arrays | Dataset[Any]
Batches = Loader | DataLoader[Any]


def check_stream(processes: int, batch_size: int | None) -> None:
    """Refuse what an ``IterableDataset`` cannot do.

    Raises:
        ValueError: If several processes are to share it, or a batch is to be the whole of it.
    """
    if processes > 1:
        raise ValueError(
            "data: an IterableDataset would give every process the same examples; set trainer.devices=1, or give a "
            "LightningDataModule of your own that shares them."
        )
    if batch_size is None:
        raise ValueError(
            "data.batch_size=null is the whole of a split, and an IterableDataset has no length; give a number."
        )


class DataModule(LightningDataModule):
    """Three splits of one data set.

    Args:
        batch_size: Examples per process and training batch; ``None`` for the whole training split.
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
        self.collate_fn: Collate | None = None
        """A function from a list of examples to a batch, in place of :meth:`collate`."""
        self.splits: dict[str, Split] = {}
        self._placed: dict[str, Split] = {}

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Return ``train``, ``val`` and ``test``; a split without examples may be left out."""

    def setup(self, stage: str | None = None) -> None:
        """Load the splits once."""
        if not self.splits:
            self.splits = self.load()

    def collate(self, examples: list[Any]) -> Any:
        """Make a batch of any nesting of a data set's examples; by default their tensors are stacked."""
        return default_collate(examples)

    def ids(self, split: str) -> Sequence[Any] | None:
        """Return what names each example of a split, in its order; ``None`` where that is its place in the split."""
        return None

    def loader(self, split: str, *, training: bool = False) -> Batches:
        """Return batches of one split; in training batches where ``training`` is set, and shuffled then.

        An ``IterableDataset`` comes in its own order.

        Raises:
            ValueError: See :func:`check_stream`.
        """
        self.setup()
        size = self.batch_size if training else self.eval_batch_size
        data, order, collate = self.placed(split), self.order(training), self.collate_fn or self.collate
        if not isinstance(data, IterableDataset):
            return Loader(data, size, collate=collate, **order)
        check_stream(order["world_size"], size)
        return DataLoader(
            data, size, collate_fn=collate, drop_last=order["drop_last"], num_workers=self.num_workers
        )

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
        """Return a split as the trainer's device takes it.

        Where it lies in memory and is small enough, it is moved to a CUDA device; float64 becomes float32 where the
        device has none.
        """
        arrays = self.splits[split]
        if self.trainer is None or not isinstance(arrays, Mapping):
            return arrays
        device = self.trainer.strategy.root_device
        if home(device) != device:
            return mapped(arrays, lambda t: t.float() if t.dtype == torch.float64 else t)
        if device.type != "cuda":
            return arrays
        if split not in self._placed:
            self._placed[split] = resident(dict(arrays), device, torch.cuda.mem_get_info(device)[0])
        return self._placed[split]

    def train_dataloader(self) -> Batches:
        """Return shuffled batches of the training split."""
        return self.loader("train", training=True)

    def val_dataloader(self) -> Batches | list[Batches]:
        """Return batches of the validation split, nothing where there is none."""
        return self.loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> Batches | list[Batches]:
        """Return batches of the test split, nothing where there is none."""
        return self.loader("test") if "test" in self.splits else []


@dataclass(eq=False)
class InMemory(DataModule):
    """A DataModule that is a dataclass: its arguments are its fields. See there for those of the base."""

    _: KW_ONLY
    batch_size: int | None = 128
    eval_batch_size: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        """Make the module; checks of the arguments come after it."""
        workers = getattr(self, "num_workers", 0)
        super().__init__(self.batch_size, self.eval_batch_size, self.seed, workers)


@dataclass(eq=False)
class Lazy(InMemory):
    """The same where examples are read when they are needed, and so by worker processes."""

    _: KW_ONLY
    num_workers: int = 0


@dataclass(eq=False)
class DividedFile(InMemory):
    """One file or folder, split by shares.

    Args:
        path: The file or folder.
        split: Shares of train, validation and test.
        split_seed: Seed of the split: fixed, so that runs of all seeds share one test set.
    """

    path: str
    split: Sequence[float] = (0.7, 0.1, 0.2)
    split_seed: int = 0

    def parts(self, count: int) -> dict[str, Tensor]:
        """Return the indices of each split's examples, without the splits that have none.

        Raises:
            ValueError: If the shares are not three that sum to one.
        """
        indices = split_indices(count, self.split, self.split_seed)
        return {name: part for name, part in zip(SPLITS, indices, strict=True) if len(part)}
