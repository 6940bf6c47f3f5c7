"""Users' arrays are validated and never unpickled."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from multitask.data.npz import Npz


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    file = tmp_path / "file.npz"
    np.savez(
        file,
        x=rng.normal(size=(10, 3)),
        a=rng.normal(size=10),
        y=rng.normal(size=10),
        c=rng.integers(3, size=10).astype(np.uint8),
        part=np.array(["train"] * 6 + ["val"] * 2 + ["test"] * 2),
        short=np.zeros(9),
        objects=np.array([{}] * 10, dtype=object),
        single=np.array(3.0),
        **{"mask/a": np.array([1.0, np.nan] * 5)},
    )
    return file


def test_dtypes_and_split_array(path: Path) -> None:
    splits = Npz(str(path), ["y", "c", "inputs"], inputs="x", split="part").load()
    assert {name: len(arrays["y"]) for name, arrays in splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert splits["train"]["inputs"].dtype == torch.float32
    assert splits["train"]["c"].dtype == torch.int64
    with np.load(path) as file:
        np.testing.assert_array_equal(splits["val"]["y"].numpy(), file["y"][6:8])


def test_named_targets_keep_float64_and_unnamed_arrays_are_float32(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=np.ones((4, 2)), y=1e6 + np.arange(4) / 3, z=np.ones(4, np.float16))
    named = Npz(str(tmp_path / "f.npz"), ["y", "z"], inputs="x", split=[1.0, 0.0, 0.0]).load()["train"]
    assert [named[k].dtype for k in ("inputs", "y", "z")] == [torch.float32, torch.float64, torch.float32]
    every = Npz(str(tmp_path / "f.npz"), None, inputs="x", split=[1.0, 0.0, 0.0]).load()["train"]
    assert {values.dtype for values in every.values()} == {torch.float32}


def test_split_fractions_are_deterministic_and_may_omit_splits(path: Path) -> None:
    one, two = (Npz(str(path), ["y"], inputs="x", split=[0.8, 0.0, 0.2], seed=i).load() for i in range(2))
    assert sorted(one) == ["test", "train"]
    assert torch.equal(one["test"]["y"], two["test"]["y"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["b"]}, "has no 'b'; it has x, a, y, c"),
        ({"targets": ["short"]}, "'short' has 9 rows and 'x' 10"),
        ({"targets": ["objects"]}, r"data\.path=.*'objects' cannot be read: it holds pickled objects"),
        ({"targets": ["part"]}, r"data\.path=.*'part' is of type <U5; give floats, integers or booleans"),
        ({"targets": ["single"]}, r"'single' is a single value; give one row per example"),
        ({"targets": ["c"], "split": "y"}, "must give one of train, val, test"),
        ({"targets": ["c"], "split": [0.5, 0.2, 0.2]}, "sum to 1"),
        ({"targets": ["c"], "split": [0.5, 0.5]}, r"data\.split=\[0\.5, 0\.5\] must be three shares"),
        ({"targets": ["c"], "split": 0.5}, r"data\.split=0\.5 must be three shares"),
        ({"targets": ["a"]}, "'mask/a' is a mask and must be true or false"),
    ],
)
def test_invalid_arrays_are_rejected(path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Npz(str(path), inputs="x", **options).load()


def test_missing_path_is_reported_with_the_expected_arrays() -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.path is null; .* one array for each of a, b"):
        Npz(None, ["a", "b"]).load()


@pytest.mark.parametrize("corrupt", [lambda content: pickle.dumps([1, 2]), lambda content: content[:900]])
def test_file_that_is_not_an_npz_is_rejected(path: Path, corrupt: Callable[[bytes], bytes]) -> None:
    path.write_bytes(corrupt(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"data\.path=.* is damaged or not an \.npz; .* Pickles are never loaded"
    ):
        Npz(str(path), ["y"], inputs="x").load()


def test_corrupt_array_is_rejected(path: Path) -> None:
    content = bytearray(path.read_bytes())
    where = content.index(b"y.npy") + 200
    content[where : where + 8] = bytes(8)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="'y' cannot be read"):
        Npz(str(path), ["y"], inputs="x").load()
