"""Data whose batches are not tensors by name is refused in one sentence."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from multitask.data.base import DataModule, Split
from multitask.run.batches import check_batches, first_batch
from multitask.run.errors import ConfigError

Example = Callable[[int], Any]


class Items(Dataset[Any]):
    def __init__(self, example: Example) -> None:
        self.example = example

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return self.example(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield {"inputs": torch.zeros(3)}


class Data(DataModule):
    def __init__(self, split: Any, batch_size: int | None = 4) -> None:
        super().__init__(batch_size)
        self.split = split

    def load(self) -> dict[str, Split]:
        return {"train": self.split}


def made(split: Any) -> Data:
    data = Data(split if not callable(split) else Items(split))
    data.setup()
    return data


X = torch.zeros(3)
REFUSED: dict[str, tuple[Any, str]] = {
    "stream": (Stream(), "is an IterableDataset"),
    "tuple": (lambda i: (X, i), "gives a tuple for an example"),
    "dict": (lambda i: {"inputs": {"ids": X, "mask": X}}, "gives a dict for 'inputs'"),
    "list": (lambda i: {"inputs": [X, X]}, "gives a list for 'inputs'"),
    "text": (lambda i: {"inputs": "a sentence"}, "gives a str for 'inputs'"),
    "path beside": (lambda i: {"inputs": X, "path": f"{i}.png"}, "gives a str for 'path'"),
    "none": (lambda i: {"inputs": X, "y": None}, "gives a NoneType for 'y'"),
    "no inputs": (lambda i: {"x": X}, "and no 'inputs'"),
    "ragged": (lambda i: {"inputs": torch.zeros(1 + i)}, "cannot be stacked"),
    "in memory": ({"inputs": np.zeros((5, 3))}, "gives a ndarray for 'inputs'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str) -> None:
    split, says = REFUSED[kind]
    with pytest.raises(ConfigError, match=f"data: the train split .*{says}"):
        check_batches(made(split), 1)


def test_ragged_in_a_later_example() -> None:
    data = made(lambda i: {"inputs": torch.zeros(3 if i < 2 else i)})
    check_batches(data, 1)
    with pytest.raises(ConfigError, match="the train split has examples that cannot be stacked"):
        first_batch(data, "train")


def test_tensors_arrays_and_numbers_go() -> None:
    data = made(
        lambda i: {"inputs": X.numpy(), "a": float(i), "b": i, "c": np.float64(i), "d": torch.tensor(i)}
    )
    check_batches(data, 1)
    assert all(isinstance(value, torch.Tensor) for value in first_batch(data, "train").values())


@pytest.mark.parametrize(("batch_size", "processes"), [(13, 1), (7, 2)])
def test_not_one_full_batch(batch_size: int, processes: int) -> None:
    data = Data({"inputs": torch.zeros(12, 3)}, batch_size)
    data.setup()
    check_batches(data, processes)
    data.drop_last = True
    with pytest.raises(
        ConfigError, match=r"data.drop_last=true leaves no batch of 1[34] of the 12 training examples"
    ):
        check_batches(data, processes)
