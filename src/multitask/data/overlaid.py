"""Overlaid pairs of images: Fashion-MNIST with MNIST, and full-size data sets from idx files."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor

from multitask.data.base import SPLITS, InMemory, Split
from multitask.data.digits import read_idx_folder, read_npz
from multitask.data.loading import Arrays, held_out, split_indices
from multitask.data.multi_mnist import compose
from multitask.randomness import derived_seed

Source = tuple[Tensor, Tensor]


def overlay(left: Source, right: Source, count: int, seed: int) -> Arrays:
    """Draw ``count`` pairs of a left and a right image and compose them.

    A source is a pair of images ``[n, 28, 28]`` and labels ``[n]``; images are used equally often, up to one.
    Returns ``inputs`` ``[count, 1, 28, 28]``, ``left`` and ``right`` ``[count]``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(source: Source) -> Source:
        size = len(source[0])
        rounds = -(-count // size)
        chosen = torch.cat([torch.randperm(size, generator=generator) for _ in range(rounds)])[:count]
        return source[0][chosen], source[1][chosen].long()

    (left_images, left_labels), (right_images, right_labels) = draw(left), draw(right)
    return {"inputs": compose(left_images, right_images), "left": left_labels, "right": right_labels}


@dataclass(eq=False)
class FashionMNISTPairs(InMemory):
    """A garment at the upper left and a digit at the lower right, which conflict more than two digits.

    Args:
        left_path: ``.npz`` of the left images: ``images`` uint8 ``[n, 28, 28]``, ``labels`` ``[n]``.
        right_path: The same for the right images.
        split: Shares of each source for train, validation and test; no image is in two splits.
        pairs_per_image: Number of pairs to compose per left image of a split.
        split_seed: Seed of split and composition: fixed, so that runs of all seeds share one test set.
    """

    left_path: str
    right_path: str
    split: Sequence[float] = (0.7, 0.1, 0.2)
    pairs_per_image: int = 1
    split_seed: int = 0

    def load(self) -> dict[str, Split]:
        """Read both sources, split each, and compose pairs within each split.

        Raises:
            FileNotFoundError: If a file is missing.
        """
        sources = (
            read_npz(Path(self.left_path), "data.left_path"),
            read_npz(Path(self.right_path), "data.right_path"),
        )
        parts = [split_indices(len(source[0]), self.split, self.split_seed) for source in sources]
        splits: dict[str, Split] = {}
        for number, name in enumerate(SPLITS):
            left, right = (
                (source[0][part[number]], source[1][part[number]])
                for source, part in zip(sources, parts, strict=True)
            )
            if len(left[0]) and len(right[0]):
                count = self.pairs_per_image * len(left[0])
                splits[name] = overlay(left, right, count, derived_seed("pairs", name, self.split_seed))
        return splits


@dataclass(eq=False)
class FullSizePairs(InMemory):
    """Full-size MultiMNIST, or pairs from any two MNIST-like data sets, read from their idx files.

    Test pairs use the sources' own test images; validation pairs use a held-out part of their training images. With
    one source, both images of a pair are drawn from it.

    Args:
        path: Folder of the left images' idx files: ``train-images-idx3-ubyte`` and so on, optionally gzipped.
        right_path: Folder of the right images' files; ``None`` for the same.
        validation: Share of the training images to validate on.
        pairs_per_image: Number of pairs to compose per left image of a split.
        split_seed: Seed of split and composition: fixed, so that runs of all seeds share one test set.
    """

    path: str
    right_path: str | None = None
    validation: float = 1 / 12
    pairs_per_image: int = 1
    split_seed: int = 0
    _: KW_ONLY
    batch_size: int | None = 256

    def load(self) -> dict[str, Split]:
        """Read the sources and compose pairs within each split.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged.
        """
        left = self._parts(read_idx_folder(Path(self.path), "data.path"))
        right = left
        if self.right_path is not None:
            right = self._parts(read_idx_folder(Path(self.right_path), "data.right_path"))
        splits: dict[str, Split] = {}
        for name in left:
            count = self.pairs_per_image * len(left[name][0])
            if count:
                seed = derived_seed("pairs", name, self.split_seed)
                splits[name] = overlay(left[name], right[name], count, seed)
        return splits

    def _parts(self, digits: dict[str, Source]) -> dict[str, Source]:
        images, labels = digits["train"]
        train, val = held_out(len(images), self.validation, self.split_seed)
        return {
            "train": (images[train], labels[train]),
            "val": (images[val], labels[val]),
            "test": digits["test"],
        }
