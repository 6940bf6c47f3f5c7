"""Pairs of Fashion-MNIST and MNIST, and full-size pairs from idx files."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from multitask.data.digits import read_idx
from multitask.data.multi_mnist import compose, overlay
from multitask.data.overlaid import FashionMNISTPairs, FullSizePairs

DATA = Path(__file__).parents[3] / "data"


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, train: int = 24, test: int = 10, ending: str = "", offset: int = 0) -> None:
    """Write images whose brightness is their number and whose label is its last digit."""
    folder.mkdir(parents=True)
    for name, count, first in (("train", train, 1), ("t10k", test, 101)):
        numbers = np.arange(first, first + count) + offset
        images = np.broadcast_to(numbers[:, None, None], (count, 28, 28))
        write_idx(folder / f"{name}-images-idx3-ubyte{ending}", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte{ending}", numbers % 10)


def brightness(inputs: Tensor, row: int, column: int) -> Tensor:
    """Return the grey value of a pixel in the source."""
    return ((inputs[:, 0, row, column] * 0.3081 + 0.1307) * 255).round().long()


# Pairs


def test_fashion_pairs_come_from_both_sources():
    module = FashionMNISTPairs(str(DATA / "fashion_mnist_5k.npz"), str(DATA / "mnist_5k.npz"))
    module.setup("fit")
    train, val, test = (module.splits[name] for name in ("train", "val", "test"))
    assert [len(part["inputs"]) for part in (train, val, test)] == [3500, 500, 1000]
    assert train["inputs"].shape == (3500, 1, 28, 28)
    for key in ("left", "right"):
        assert train[key].unique().tolist() == list(range(10))
    # Only the left image covers the upper left corner, where garments differ from digits.
    assert (train["inputs"][:, 0, 2:5, 8:14] > 0).float().mean() > 0.2


def test_overlay_keeps_each_image_with_its_label():
    left = torch.arange(1, 9, dtype=torch.uint8).view(8, 1, 1).expand(8, 28, 28), torch.arange(1, 9) % 10
    right = (
        torch.arange(101, 106, dtype=torch.uint8).view(5, 1, 1).expand(5, 28, 28),
        torch.arange(101, 106) % 10,
    )
    pairs = overlay(left, right, 16, seed=3)
    first, second = brightness(pairs["inputs"], 0, 0), brightness(pairs["inputs"], 25, 25)
    assert first.sort().values.tolist() == sorted(2 * list(range(1, 9)))
    assert torch.equal(first % 10, pairs["left"])
    assert torch.equal(second % 10, pairs["right"])
    assert second.bincount()[101:].tolist() in ([[4, 3, 3, 3, 3][i - j] for i in range(5)] for j in range(5))
    expected = compose(
        *(torch.full((1, 28, 28), n, dtype=torch.uint8) for n in (int(first[0]), int(second[0])))
    )
    assert torch.equal(pairs["inputs"][:1], expected)


def test_splits_share_no_fashion_image():
    module = FashionMNISTPairs(
        str(DATA / "fashion_mnist_5k.npz"), str(DATA / "mnist_5k.npz"), pairs_per_image=2
    )
    module.setup("fit")
    corners = {}
    for name, part in module.splits.items():
        assert len(part["inputs"]) == {"train": 7000, "val": 1000, "test": 2000}[name]
        # The area that the right image never covers.
        corner = torch.cat(
            [part["inputs"][:, 0, :4].flatten(1), part["inputs"][:, 0, :, :4].flatten(1)], dim=1
        )
        informative = (corner > 1).sum(1) > 40
        corners[name] = {row.numpy().tobytes() for row in corner[informative]}
        assert len(corners[name]) > 20
    assert not corners["train"] & corners["test"]
    assert not corners["train"] & corners["val"]


@pytest.mark.parametrize(("ending", "place"), [("", "."), (".gz", "."), ("", "MNIST/raw")])
def test_full_size_pairs_from_idx_files(tmp_path: Path, ending: str, place: str):
    write_mnist(tmp_path / "mnist" / place, ending=ending)
    module = FullSizePairs(str(tmp_path / "mnist"), validation=0.25, pairs_per_image=2)
    module.setup("fit")
    sources = {}
    for name, count in (("train", 36), ("val", 12), ("test", 20)):
        part = module.splits[name]
        assert part["inputs"].shape == (count, 1, 28, 28)
        left, right = brightness(part["inputs"], 0, 0), brightness(part["inputs"], 25, 25)
        assert torch.equal(left % 10, part["left"])
        assert torch.equal(right % 10, part["right"])
        assert not torch.equal(left, right)
        sources[name] = set(left.tolist()) | set(right.tolist())
    assert sources["train"] | sources["val"] == set(range(1, 25))
    assert not sources["train"] & sources["val"]
    assert sources["test"] == set(range(101, 111))


def test_full_size_pairs_of_two_sources(tmp_path: Path):
    write_mnist(tmp_path / "fashion")
    write_mnist(tmp_path / "mnist", offset=30)
    module = FullSizePairs(str(tmp_path / "fashion"), str(tmp_path / "mnist"))
    module.setup("fit")
    inputs = module.splits["train"]["inputs"]
    assert brightness(inputs, 0, 0).max() <= 24
    assert brightness(inputs, 25, 25).min() > 30


def test_missing_and_damaged_idx_files_are_rejected(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*train-images-idx3-ubyte"):
        FullSizePairs(str(tmp_path)).setup("fit")
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte is not an idx file"):
        FullSizePairs(str(tmp_path / "mnist")).setup("fit")
    write_idx(tmp_path / "short", np.zeros((3, 2)))
    content = (tmp_path / "short").read_bytes()
    (tmp_path / "short").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="should hold 6 values after its header and holds 5"):
        read_idx(tmp_path / "short")
    with pytest.raises(FileNotFoundError, match=r"data\.left_path=nowhere"):
        FashionMNISTPairs("nowhere", "nowhere").setup("fit")


def test_different_numbers_of_images_and_labels_are_rejected(tmp_path: Path):
    write_mnist(tmp_path / "mnist")
    write_idx(tmp_path / "mnist" / "train-labels-idx1-ubyte", np.zeros(23))
    with pytest.raises(ValueError, match="24 train images and 23 labels"):
        FullSizePairs(str(tmp_path / "mnist")).setup("fit")
