"""Refuses data whose batches are not tensors by name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate

from multitask.data.base import DataModule
from multitask.run.errors import ConfigError
from multitask.task import Batch

_WANTED = (
    "a data set gives each example as a mapping of tensors by name, 'inputs' among them, all of one shape"
)


def check_batches(data: DataModule, processes: int) -> None:
    """Look at each split's type and, where it is read when needed, at its first two examples.

    Args:
        data: With its splits.
        processes: How many share the training batches.

    Raises:
        ConfigError: If a split has no length and order, batches of it would not be tensors by name, or
            there is not one full training batch where others are left out.
    """
    for name, split in data.splits.items():
        where = f"data: the {name} split"
        if isinstance(split, IterableDataset):
            raise ConfigError(
                f"{where} is an IterableDataset, which has neither a length nor an order that a run can resume; give a "
                "map-style data set with __len__ and __getitem__."
            )
        if isinstance(split, Mapping):
            _check(where, split)
            continue
        examples = [split[i] for i in range(min(2, len(split)))]  # type: ignore[arg-type]
        for example in examples:
            _check(where, _tensors(where, example))
        with _stacking(where):
            default_collate(examples)

    if not data.drop_last or "train" not in data.splits:
        return
    loader = data.loader("train", training=True)
    size = loader.batch_size * processes
    if len(loader) == 0 or loader.examples < size:
        raise ConfigError(
            f"data.drop_last=true leaves no batch of {size} of the {loader.examples} training examples; lower "
            f"data.batch_size={data.batch_size}."
        )


def first_batch(data: DataModule, split: str) -> Batch:
    """Return a batch of a split, as in training for that of the training split.

    Raises:
        ConfigError: If its examples cannot be stacked.
    """
    with _stacking(f"data: the {split} split"):
        return next(iter(data.loader(split, training=split == "train")))


@contextmanager
def _stacking(where: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if "stack" not in str(error) and "collate" not in str(error):
            raise
        raise ConfigError(
            f"{where} has examples that cannot be stacked ({_first_sentence(error)}); {_WANTED}."
        ) from error


def _tensors(where: str, example: Any) -> Mapping[str, Any]:
    """Return an example with its numbers and arrays as the tensors that a batch makes of them."""
    if not isinstance(example, Mapping):
        raise ConfigError(f"{where} gives a {type(example).__name__} for an example; {_WANTED}.")
    numbers = {
        k: v for k, v in example.items() if isinstance(v, bool | int | float) or hasattr(v, "__array__")
    }
    return {**example, **{key: torch.as_tensor(value) for key, value in numbers.items()}}


def _check(where: str, values: Mapping[str, Any]) -> None:
    if "inputs" not in values:
        raise ConfigError(
            f"{where} has {', '.join(map(str, values)) or 'nothing'}, and no 'inputs'; {_WANTED}."
        )
    for key, value in values.items():
        if not isinstance(value, Tensor):
            raise ConfigError(f"{where} gives a {type(value).__name__} for '{key}'; {_WANTED}.")


def _first_sentence(error: Exception) -> str:
    # A worker process's error ends with the line that says what was wrong.
    return " ".join(str(error).strip().splitlines()[-1].split()).partition(". ")[0].rstrip(".")
