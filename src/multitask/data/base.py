"""Base classes of the data modules: three splits and their loaders."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from multitask.data.batches import mapped
from multitask.data.loading import Arrays, Collate, Loader, count_of, resident, split_indices
from multitask.metrics.precision import home

Split = Arrays | Dataset[Any]
Batches = Loader | DataLoader[Any]


def check_stream(processes: int, batch_size: int | None) -> None:
    """Raise ``ValueError`` if an ``IterableDataset`` has several processes, or no batch size."""
    if processes > 1:
        raise ValueError(
            "data: an IterableDataset would give every process the same examples; set trainer.devices=1, or use your "
            "own LightningDataModule that shards them."
        )
    if batch_size is None:
        raise ValueError(
            "data.batch_size=null means the whole split, but an IterableDataset has no length; set a number."
        )


class DataModule(LightningDataModule):
    """Three splits of one data set.

    Args:
        batch_size: Examples per process and training batch; ``None`` for the whole training split.
        eval_batch_size: Examples per process and evaluation batch; affects only speed, and the loss of tasks
            with ``count: batch``.
        seed: Seed of the order of the training examples.
        num_workers: Number of worker processes for data that is not in memory.
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
        """Whether to drop the last training batch of an epoch if it is incomplete."""
        self.collate_fn: Collate | None = None
        """Function that collates a list of examples into a batch, in place of :meth:`collate`."""
        self.splits: dict[str, Split] = {}
        self._placed: dict[str, Split] = {}

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Return ``train``, ``val`` and ``test``; empty splits may be omitted.

        Raises:
            FileNotFoundError: If a file or folder is missing.
            ValueError: If a file is damaged or does not fit the arguments.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load the splits once."""
        if not self.splits:
            self.splits = self.load()

    def collate(self, examples: list[Any]) -> Any:
        """Collate examples into a batch of any nesting; by default their tensors are stacked."""
        return default_collate(examples)

    def ids(self, split: str) -> Sequence[Any] | None:
        """Return an identifier per example of a split, in order; ``None`` if the index in the split identifies it."""
        return None

    def loader(self, split: str, *, training: bool = False) -> Batches:
        """Return a loader of one split; with ``training`` it has training batches and shuffles.

        An ``IterableDataset`` keeps its own order; see :func:`check_stream` for its errors.
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
        """Return the loader's arguments for order, last batch and processes.

        With ``overfit_batches`` nothing is shuffled, so that every epoch has the same batches.
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
        """Return a split prepared for the trainer's device.

        In-memory splits that are small enough are moved to a CUDA device. On devices without float64, float64 becomes
        float32.
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
        """Return batches of the validation split, or an empty list without one."""
        return self.loader("val") if "val" in self.splits else []

    def test_dataloader(self) -> Batches | list[Batches]:
        """Return batches of the test split, or an empty list without one."""
        return self.loader("test") if "test" in self.splits else []


@dataclass(eq=False)
class InMemory(DataModule):
    """A :class:`DataModule` as a dataclass, whose fields are its arguments."""

    _: KW_ONLY
    batch_size: int | None = 128
    eval_batch_size: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        """Initialize the base class; subclasses check their arguments afterwards."""
        workers = getattr(self, "num_workers", 0)
        super().__init__(self.batch_size, self.eval_batch_size, self.seed, workers)


@dataclass(eq=False)
class Lazy(InMemory):
    """An :class:`InMemory` module whose examples are read on demand, possibly by worker processes."""

    _: KW_ONLY
    num_workers: int = 0


@dataclass(eq=False)
class DividedFile(InMemory):
    """A file or folder, split by shares.

    Args:
        path: The file or folder.
        split: Shares of train, validation and test.
        split_seed: Seed of the split: fixed, so that runs of all seeds share one test set.
    """

    path: str
    split: Sequence[float] = (0.7, 0.1, 0.2)
    split_seed: int = 0

    def parts(self, count: int) -> dict[str, Tensor]:
        """Return the indices of the examples in each non-empty split."""
        return split_indices(count, self.split, self.split_seed)

    def divided(self, arrays: Arrays) -> dict[str, Split]:
        """Return the examples of each non-empty split."""
        parts = self.parts(count_of(arrays))
        return {name: {key: values[part] for key, values in arrays.items()} for name, part in parts.items()}

    def standardized(self, inputs: Tensor, dim: int | None = None) -> Tensor:
        """Return inputs relative to the mean and standard deviation of the training split, along ``dim``."""
        train = inputs[self.parts(len(inputs)).get("train", [])]
        return (inputs - train.mean(dim)) / train.std(dim)
