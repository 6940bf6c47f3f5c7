"""Arrays of the user's own are read strictly and never unpickled."""

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
        c=rng.integers(3, size=10).astype(np.uint8),
        part=np.array(["train"] * 6 + ["val"] * 2 + ["test"] * 2),
        short=np.zeros(9),
        objects=np.array([{}] * 10, dtype=object),
    )
    return file


def test_dtypes_and_split_array(path: Path) -> None:
    splits = Npz(str(path), ["a", "c", "inputs"], inputs="x", split="part").load()
    assert {name: len(arrays["a"]) for name, arrays in splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert splits["train"]["inputs"].dtype == torch.float32
    assert splits["train"]["c"].dtype == torch.int64
    with np.load(path) as file:
        np.testing.assert_array_equal(splits["val"]["a"].numpy(), file["a"][6:8].astype(np.float32))


def test_shares_are_deterministic_and_may_leave_splits_out(path: Path) -> None:
    one, two = (Npz(str(path), ["a"], inputs="x", split=[0.8, 0.0, 0.2], seed=i).load() for i in range(2))
    assert sorted(one) == ["test", "train"]
    assert torch.equal(one["test"]["a"], two["test"]["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["b"]}, "has no 'b'; it has x, a, c"),
        ({"targets": ["short"]}, "'short' has 9 rows and 'x' 10"),
        ({"targets": ["objects"]}, "cannot be read: .*pickle"),
        ({"targets": ["part"]}, "give floats, integers or booleans"),
        ({"targets": ["a"], "split": "a"}, "must give one of train, val, test"),
        ({"targets": ["a"], "split": [0.5, 0.2, 0.2]}, "sum to 1"),
    ],
)
def test_refusals_say_what_is_wrong(path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Npz(str(path), inputs="x", **options).load()


def test_missing_file_says_what_is_expected() -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.path=None .* one array for each of a, b"):
        Npz(None, ["a", "b"]).load()
