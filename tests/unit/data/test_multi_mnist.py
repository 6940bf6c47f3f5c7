"""MultiMNIST: composition of digit pairs, and disjoint splits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multitask.data.multi_mnist import MultiMNIST, compose, overlay

DIGITS = Path(__file__).parents[3] / "data" / "mnist_5k.npz"


def test_digits_are_at_their_offsets() -> None:
    left, right = torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1, 28, 28, dtype=torch.uint8)
    left[0, 9, 9], left[0, 18, 18] = 200, 50
    right[0, 12, 12] = 90  # overlaps the left digit's pixel (18, 18) on the canvas
    image = compose(left, right)[0, 0] * 0.3081 + 0.1307
    assert image.shape == (28, 28)
    # Nearest neighbour samples canvas pixel floor((i + ½) · 36 / 28).
    assert image[7, 7].item() == pytest.approx(200 / 255, abs=1e-6)
    assert image[14, 14].item() == pytest.approx(90 / 255, abs=1e-6)
    assert image[0, 0].item() == pytest.approx(0.0, abs=1e-6)


def test_composition_matches_pillow() -> None:
    with np.load(DIGITS) as file:
        left, right = file["images"][[3, 4000]], file["images"][[2500, 77]]
    canvas = np.zeros((2, 36, 36), dtype=np.uint8)
    canvas[:, :28, :28] = left
    canvas[:, 6:34, 6:34] = np.maximum(canvas[:, 6:34, 6:34], right)
    small = [Image.fromarray(one).resize((28, 28), Image.Resampling.NEAREST) for one in canvas]
    expected = (torch.from_numpy(np.stack(small))[:, None] / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(compose(torch.from_numpy(left), torch.from_numpy(right)), expected)


def test_splits_depend_on_the_split_seed_alone() -> None:
    first, again, other = (MultiMNIST(str(DIGITS), split_seed=s, seed=i) for i, s in enumerate((0, 0, 1)))
    a, b, c = first.load(), again.load(), other.load()
    assert [len(a[name]["left"]) for name in ("train", "val", "test")] == [3500, 500, 1000]
    assert torch.equal(a["test"]["inputs"], b["test"]["inputs"])
    assert not torch.equal(a["test"]["inputs"], c["test"]["inputs"])


def test_labels_are_those_of_the_digits() -> None:
    with np.load(DIGITS) as file:
        images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    source = images[:50], torch.arange(50)
    made = overlay(source, source, 60, seed=0)
    for i in (0, 20, 59):
        expected = compose(images[made["left"][i]][None], images[made["right"][i]][None])
        assert torch.equal(made["inputs"][i], expected[0])
    assert labels.bincount().tolist() == [500] * 10


def test_missing_file_is_reported() -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.path=nowhere\.npz"):
        MultiMNIST("nowhere.npz").load()


def test_invalid_arrays_are_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", inputs=np.zeros(3))
    with pytest.raises(ValueError, match="has no 'images, labels'; it has inputs"):
        MultiMNIST(str(tmp_path / "other.npz")).load()
    np.savez(tmp_path / "floats.npz", images=np.zeros((3, 28, 28)), labels=np.zeros(3))
    with pytest.raises(ValueError, match=r"images \[3, 28, 28\] of float64 .* must have images"):
        MultiMNIST(str(tmp_path / "floats.npz")).load()
