"""Batches in an order that depends on seed and epoch alone, so that a run can stop anywhere and go on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from multitask.data.batches import examples_in, mapped, tensors_of
from multitask.randomness import derived_seed

Arrays = dict[str, Any]
"""Tensors by name with the same first dimension, nested where inputs are several."""
Collate = Callable[[list[Any]], Any]
"""Makes a batch of a list of examples."""


class Made(Dataset[Arrays]):
    """Examples that are made when asked for.

    Args:
        count: How many there are.
        make: Makes one by its index; worker processes have to be able to unpickle it.
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
    """Batches of a data set, deterministic by seed and epoch, sharded by rank, resumable in mid-epoch.

    Tensors in memory are indexed by whole batches, where they lie; other data sets go through torch's
    DataLoader.
    On several processes each batch of the whole is cut into one slice a rank, so that w processes
    with batches of b see what one process with batches of w·b sees.

    Args:
        data: Tensors by name with the same first dimension, or a map-style data set.
        batch_size: Examples per rank and batch; ``None`` for the whole of the data.
        drop_last: Whether to leave out a last batch that is not full.
        shuffle: Whether to draw a new order each epoch.
        seed: Seed of the order.
        num_workers: Worker processes, for data sets that are not in memory.
        rank: This process's number.
        world_size: How many processes share the data.
        collate: Makes a batch of a data set's items.
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
        self.examples = (examples_in(data) or 0) if isinstance(data, Mapping) else len(data)  # type: ignore[arg-type]
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
        """Choose the order of the next pass, and tell data that changes from epoch to epoch.

        Without shuffling each pass is as the first.
        """
        self.epoch = epoch if self.shuffle else 0
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(self.epoch)

    def __len__(self) -> int:
        return self.batches_of(self.examples, self.batch_size * self.world_size)

    def batches_of(self, examples: int, size: int) -> int:
        """Return how many batches of ``size`` there are in so many examples."""
        return examples // size if self.drop_last else -(-examples // size)

    def smallest(self, processes: int) -> int:
        """Return how many examples a process's smallest batch has where so many processes share the data."""
        size = self.batch_size * processes
        left = self.examples % size
        return self.batch_size if self.drop_last or not left else left // processes

    def __iter__(self) -> Iterator[Any]:
        start, self._resume_at = self._resume_at, 0
        self._position = start
        for batch in self._fetch(self._batches()[start:]):
            # Counted before the batch is handed out: a checkpoint made while it is used is past it.
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the current epoch have been handed out."""
        return {"position": self._position % max(1, len(self))}

    def give_back(self, count: int) -> None:
        """Count ``count`` batches as not handed out, for a state from before they were used."""
        self._position -= count

    def end_pass(self) -> None:
        """Count the pass as over, however many of its batches were used."""
        self._position = 0

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next pass after the batches that were handed out before."""
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
    """Move the indices of all batches in one go."""
    if device.type == "cpu" or not batches:
        return batches
    return torch.cat(batches).to(device).split([len(batch) for batch in batches])


def resident(arrays: Arrays, device: torch.device, free: int) -> Arrays:
    """Return the arrays on the device, if they take no more than a quarter of its free memory; else as they are.

    Args:
        arrays: Tensors by name.
        device: The device to move them to.
        free: How many bytes are free there.
    """
    size = sum(values.numel() * values.element_size() for values in tensors_of(arrays))
    return dict(mapped(arrays, lambda values: values.to(device))) if 4 * size <= free else arrays


def split_indices(count: int, fractions: Sequence[float], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut ``range(count)``, shuffled by seed, into train, validation and test.

    Args:
        count: How many examples there are.
        fractions: Shares of train, validation and test; they sum to one.
        seed: Seed of the shuffle.

    Raises:
        ValueError: If they are not three, negative, or do not sum to one.
    """
    shares = fractions if isinstance(fractions, Sequence) and not isinstance(fractions, str) else ()
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-6:
        raise ValueError(
            f"data.split={fractions} must be three shares for train, validation and test that sum to 1."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed("split", seed)))
    first = round(fractions[0] * count)
    second = count if fractions[2] == 0 else first + round(fractions[1] * count)
    return order[:first], order[first:second], order[second:]


def held_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Cut ``range(count)``, shuffled by seed, into what to train on and a share to validate on.

    Raises:
        ValueError: If the share is not in [0, 1), or leaves nothing to train on.
    """
    if not 0 <= share < 1 or (count and round((1 - share) * count) == 0):
        raise ValueError(f"data.validation={share} must be a share of the {count} training examples under 1.")
    train, val, _ = split_indices(count, (1 - share, share, 0.0), seed)
    return train, val
