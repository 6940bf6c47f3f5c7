"""Loaders whose order depends on seed and epoch alone, so that a run can resume at any batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from multitask.data.batches import examples_in, mapped, tensors_of
from multitask.losses.counts import DEFAULT_IGNORE_INDEX
from multitask.randomness import derived_seed

Arrays = dict[str, Any]
"""Tensors by name with the same first dimension; several inputs are nested."""
Collate = Callable[[list[Any]], Any]
"""Function from a list of examples to a batch."""
SPLITS = ("train", "val", "test")


def missing_label(values: Tensor) -> float:
    """Return the value that marks missing labels in a tensor: NaN among floats, −100 among integers."""
    return torch.nan if values.is_floating_point() else DEFAULT_IGNORE_INDEX


def count_of(data: Arrays | Dataset[Any]) -> int:
    """Return the number of examples."""
    return (examples_in(data) or 0) if isinstance(data, Mapping) else len(data)  # type: ignore[arg-type]


def example_of(data: Arrays | Dataset[Any], index: int) -> Arrays:
    """Return one example."""
    return {k: v[index] for k, v in data.items()} if isinstance(data, Mapping) else dict(data[index])


class Made(Dataset[Arrays]):
    """Data set whose examples are created on demand.

    Args:
        count: Number of examples.
        make: Creates the example of an index; must be picklable for worker processes.
    """

    def __init__(self, count: int, make: Callable[[int], Arrays]) -> None:
        self.count = count
        self.make = make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Arrays:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.make(index)


class Loader:
    """Batches of a data set: deterministic given seed and epoch, sharded over ranks, resumable within an epoch.

    In-memory tensors are indexed one batch at a time on their device; other data sets use torch's DataLoader.
    Each global batch is split into one slice per rank, so that w processes with batches of b see the same
    examples as one process with batches of w·b.

    Args:
        data: Tensors by name with the same first dimension, or a map-style data set.
        batch_size: Examples per rank and batch; ``None`` for all examples.
        drop_last, num_workers, collate: As in torch's DataLoader; workers are for data sets that are not in memory.
        shuffle, seed: Whether to draw a new order each epoch, and its seed.
        rank, world_size: This process and the number of processes that share the data.
    """

    def __init__(
        self,
        data: Arrays | Dataset[Any],
        batch_size: int | None,
        *,
        drop_last: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        collate: Collate = default_collate,
    ) -> None:
        self.data = data
        self.examples = count_of(data)
        self.collate = collate
        self.batch_size = batch_size or max(1, -(-self.examples // world_size))
        self.drop_last = drop_last and batch_size is not None
        self.shuffle = shuffle
        self.seed = seed
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._position = 0
        self._resume_at = 0

    @property
    def sampler(self) -> "Loader":
        """The object whose ``set_epoch`` the Trainer calls at the start of each epoch."""
        return self

    batch_sampler = None  # the Trainer looks for one beside the sampler

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which the order and possibly the data depend on; it is always 0 without shuffling."""
        self.epoch = epoch if self.shuffle else 0
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(self.epoch)

    def __len__(self) -> int:
        return self.batches_of(self.examples, self.batch_size * self.world_size)

    def batches_of(self, examples: int, size: int) -> int:
        """Return the number of batches of ``size`` in ``examples`` examples."""
        return examples // size if self.drop_last else -(-examples // size)

    def smallest(self, processes: int) -> int:
        """Return the size of the smallest batch of a process, given the number of processes."""
        size = self.batch_size * processes
        left = self.examples % size
        return self.batch_size if self.drop_last or not left else left // processes

    def __iter__(self) -> Iterator[Any]:
        start, self._resume_at = self._resume_at, 0
        self._position = start
        for batch in self._fetch(self._batches()[start:]):
            # Counted before the batch is yielded: a checkpoint saved while it is in use resumes after it.
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the current epoch have been yielded."""
        return {"position": self._position % max(1, len(self))}

    def give_back(self, count: int) -> None:
        """Count the last ``count`` batches as not yielded, for a state from before their use."""
        self._position -= count

    def end_pass(self) -> None:
        """Mark the epoch as complete, however many of its batches were used."""
        self._position = 0

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration after the batches that had been yielded."""
        self._resume_at = state["position"]

    def _batches(self) -> list[Tensor]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
            order = torch.randperm(self.examples, generator=generator)
        else:
            order = torch.arange(self.examples)
        whole = order.split(self.batch_size * self.world_size)[: len(self)]
        return [batch.tensor_split(self.world_size)[self.rank] for batch in whole]

    def _fetch(self, batches: list[Tensor]) -> Iterator[Any]:
        if isinstance(self.data, Mapping):
            for indices in _moved(batches, next(tensors_of(self.data)).device):
                yield mapped(self.data, partial(torch.index_select, dim=0, index=indices))
        else:
            yield from DataLoader(
                self.data,
                batch_sampler=[indices.tolist() for indices in batches],
                collate_fn=self.collate,
                num_workers=self.num_workers,
                generator=torch.Generator().manual_seed(derived_seed("workers", self.seed, self.epoch)),
            )


def _moved(batches: list[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Move the indices of all batches in one transfer."""
    if device.type == "cpu" or not batches:
        return batches
    return torch.cat(batches).to(device).split([len(batch) for batch in batches])


def resident(arrays: Arrays, device: torch.device, free: int) -> Arrays:
    """Move arrays to a device if they need at most a quarter of its ``free`` bytes; otherwise return them unchanged."""
    size = sum(values.numel() * values.element_size() for values in tensors_of(arrays))
    return dict(mapped(arrays, lambda values: values.to(device))) if 4 * size <= free else arrays


def check_counts(examples: Sequence[int], least: int = 1) -> None:
    """Raise ``ValueError`` if these are not three numbers of examples, or one is too small."""
    if len(examples) != 3 or min(examples) < least:
        raise ValueError(
            f"data.examples={list(examples)} must be three counts of at least {least}, for train, validation and test."
        )


def split_indices(count: int, fractions: Sequence[float], seed: int) -> dict[str, Tensor]:
    """Split the shuffled ``range(count)``; return the indices of each non-empty split by its name.

    Raises ``ValueError`` if the fractions are not the shares of train, validation and test, which sum to one.
    """
    shares = fractions if isinstance(fractions, Sequence) and not isinstance(fractions, str) else ()
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-6:
        raise ValueError(
            f"data.split={fractions} must be three shares for train, validation and test that sum to 1."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed("split", seed)))
    first = round(fractions[0] * count)
    second = count if fractions[2] == 0 else first + round(fractions[1] * count)
    parts = zip(SPLITS, (order[:first], order[first:second], order[second:]), strict=True)
    return {name: part for name, part in parts if len(part)}


def held_out(count: int, share: float, seed: int) -> dict[str, Tensor]:
    """Split the shuffled ``range(count)`` into ``train`` and, unless the share is 0, ``val``.

    Raises ``ValueError`` if the share is not in [0, 1), or leaves no training example.
    """
    if not 0 <= share < 1 or (count and round((1 - share) * count) == 0):
        raise ValueError(f"data.validation={share} must be a share of the {count} training examples under 1.")
    return split_indices(count, (1 - share, share, 0.0), seed)
