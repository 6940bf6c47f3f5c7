"""Overlaid pairs of images: Fashion-MNIST with MNIST, and full-size data sets from idx files."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from multitask.data.base import InMemory, Split
from multitask.data.digits import read_idx_folder, read_npz
from multitask.data.loading import held_out, split_indices
from multitask.data.multi_mnist import Source, divided, overlay_splits


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
        """Read both sources, split each, and compose pairs within each split."""
        left, right = (
            divided(source, split_indices(len(source[0]), self.split, self.split_seed))
            for source in (
                read_npz(Path(self.left_path), "data.left_path"),
                read_npz(Path(self.right_path), "data.right_path"),
            )
        )
        return overlay_splits(left, right, self.pairs_per_image, self.split_seed)


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
        """Read the sources and compose pairs within each split."""
        left = right = self._parts(read_idx_folder(Path(self.path), "data.path"))
        if self.right_path is not None:
            right = self._parts(read_idx_folder(Path(self.right_path), "data.right_path"))
        return overlay_splits(left, right, self.pairs_per_image, self.split_seed)

    def _parts(self, images: dict[str, Source]) -> dict[str, Source]:
        train = images["train"]
        parts = held_out(len(train[0]), self.validation, self.split_seed)
        return divided(train, parts) | {"test": images["test"]}
