"""Readers for MNIST-like images: ``.npz`` files and MNIST's idx files."""

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multitask.data.files import existing, first_existing, read_arrays

# The idx format's type code for unsigned bytes, the only one that MNIST and its successors use.
_UNSIGNED_BYTE = 8
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_npz(path: Path, key: str) -> tuple[Tensor, Tensor]:
    """Return the arrays ``images`` ``[n, 28, 28]`` (uint8) and ``labels`` ``[n]`` of an ``.npz``.

    ``key``: the config key that ``path`` comes from, for errors. Raises ``FileNotFoundError`` if the file does
    not exist, ``ValueError`` if its arrays are different.
    """
    existing(path, "it must be an .npz with 'images' (uint8 [n, 28, 28]) and 'labels' ([n])", key)
    arrays = read_arrays(path, key, ["images", "labels"])
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{key}={path} has images {list(images.shape)} of {images.dtype} and labels {list(labels.shape)}; it must "
            "have images [n, 28, 28] of uint8 and one label each."
        )
    return torch.from_numpy(images), torch.from_numpy(labels)


def read_idx_folder(folder: Path, key: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images and labels of ``train`` and ``test`` from the four idx files of MNIST, optionally gzipped.

    ``key``: the config key that ``folder`` comes from, for errors. The files may also be in ``MNIST/raw`` or
    ``raw`` under the folder. Raises ``FileNotFoundError`` if one is missing, ``ValueError`` if one is damaged or
    the numbers of images and labels differ.
    """
    digits = {}
    for split, names in _IDX_FILES.items():
        images, labels = (read_idx(_find(folder, name, key)) for name in names)
        if len(images) != len(labels):
            raise ValueError(
                f"{key}={folder} has {len(images)} {split} images and {len(labels)} labels for them."
            )
        digits[split] = images, labels
    return digits


def _find(folder: Path, name: str, key: str) -> Path:
    places = (folder, folder / "raw", folder / "MNIST" / "raw")
    wanted = ", ".join(name for names in _IDX_FILES.values() for name in names)
    return first_existing(
        (place / f"{name}{ending}" for place in places for ending in ("", ".gz")),
        f"{key}={folder} has no {name}; it must contain the four idx files {wanted}, gzipped or not.",
    )


def read_idx(path: Path) -> Tensor:
    """Return the unsigned bytes of an idx file in the shape of its header; raises ``ValueError`` if it is damaged."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 4 or data[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(f"{path} is not an idx file of unsigned bytes.")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start], dtype=">u4").tolist()
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} should hold {math.prod(shape)} values after its header and holds {len(data) - start}."
        )
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy())
