"""Batches of any structure are accepted; examples that cannot be collated are rejected in one sentence."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from multitask.data.base import DataModule, Split
from multitask.errors import ConfigError
from multitask.run.data import check_batches, first_batch

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
ACCEPTED: dict[str, Any] = {
    "stream": Stream(),
    "tuple": lambda i: (X, i),
    "tensors by name": lambda i: {"inputs": {"ids": X, "mask": X}},
    "list": lambda i: {"inputs": [X, X]},
    "text": lambda i: {"inputs": "a sentence"},
    "additional path": lambda i: {"inputs": X, "path": f"{i}.png"},
    "nested, in memory": {"x": {"ids": torch.zeros(5, 3), "mask": torch.zeros(5)}, "y": torch.zeros(5)},
}
REJECTED: dict[str, tuple[Any, str]] = {
    "none": (lambda i: {"inputs": X, "y": None}, "cannot be stacked .*; set data.collate_fn"),
    "ragged": (lambda i: {"inputs": torch.zeros(1 + i)}, "cannot be stacked .*; set data.collate_fn"),
    "in memory": ({"inputs": np.zeros((5, 3))}, "gives a ndarray for 'inputs'"),
    "nested, in memory": ({"x": {"a": X, "b": "text"}}, "gives a str for 'x.b'"),
    "unequal lengths, in memory": (
        {"x": {"a": X, "b": torch.zeros(4)}},
        r"has \[4\] for 'x.b' beside 3 examples",
    ),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_accepted(kind: str) -> None:
    data = made(ACCEPTED[kind])
    check_batches(data, 1)
    first_batch(data, "train")


def test_nested_arrays_are_indexed_together() -> None:
    count = torch.arange(6.0)
    data = made({"x": {"a": count, "b": (count, count.view(6, 1))}, "y": count})
    for batch in data.loader("train", training=True):
        a, (b, c) = batch["x"]["a"], batch["x"]["b"]
        assert torch.equal(a, b)
        assert torch.equal(a, c[:, 0])
        assert torch.equal(a, batch["y"])


@pytest.mark.parametrize("kind", REJECTED)
def test_rejected(kind: str) -> None:
    split, message = REJECTED[kind]
    with pytest.raises(ConfigError, match=f"data: the train split .*{message}"):
        check_batches(made(split), 1)


def test_streams_need_one_process_and_a_batch_size() -> None:
    with pytest.raises(ValueError, match=r"every process the same examples; set trainer.devices=1"):
        check_batches(made(Stream()), 2)
    whole = Data(Stream(), None)
    whole.setup()
    with pytest.raises(ValueError, match=r"data.batch_size=null means the whole split"):
        check_batches(whole, 1)


def padded(examples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "inputs": torch.nn.utils.rnn.pad_sequence([each["inputs"] for each in examples], batch_first=True)
    }


def test_collate_fn_makes_the_batch() -> None:
    data = made(lambda i: {"inputs": torch.ones(1 + i)})
    data.collate_fn = padded
    check_batches(data, 1)
    batch = first_batch(data, "train")
    assert batch["inputs"].shape == (4, int(batch["inputs"].sum(1).max()))


def test_collate_method_makes_the_batch() -> None:
    class Padded(Data):
        def collate(self, examples: list[Any]) -> Any:
            return padded(examples)

    data = Padded(Items(lambda i: {"inputs": torch.ones(1 + i)}))
    data.setup()
    check_batches(data, 1)
    assert first_batch(data, "train")["inputs"].shape[0] == 4


def test_ragged_later_example_is_rejected() -> None:
    data = made(lambda i: {"inputs": torch.zeros(3 if i < 2 else i)})
    check_batches(data, 1)
    with pytest.raises(ConfigError, match="the train split has examples that cannot be stacked"):
        first_batch(data, "train")


def test_tensors_arrays_and_numbers_become_tensors() -> None:
    data = made(
        lambda i: {"inputs": X.numpy(), "a": float(i), "b": i, "c": np.float64(i), "d": torch.tensor(i)}
    )
    check_batches(data, 1)
    assert all(isinstance(value, torch.Tensor) for value in first_batch(data, "train").values())


@pytest.mark.parametrize(("batch_size", "processes"), [(13, 1), (7, 2)])
def test_drop_last_that_leaves_no_batch_is_rejected(batch_size: int, processes: int) -> None:
    data = Data({"inputs": torch.zeros(12, 3)}, batch_size)
    data.setup()
    check_batches(data, processes)
    data.drop_last = True
    with pytest.raises(
        ConfigError, match=r"data.drop_last=true leaves no batch of 1[34] of the 12 training examples"
    ):
        check_batches(data, processes)
