"""MultiMNIST: two overlapping digits per image, composed as in Sener & Koltun (2018)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from multitask.data.base import DividedFile, Split
from multitask.data.digits import read_npz
from multitask.data.loading import Arrays
from multitask.randomness import derived_seed

Source = tuple[Tensor, Tensor]

_CANVAS = 36
_DIGIT = 28
_OFFSET = 6
_MEAN, _STD = 0.1307, 0.3081


def compose(left: Tensor, right: Tensor) -> Tensor:
    """Overlay two digits (Multi-Task Learning as Multi-Objective Optimization, 2018).

    The left digit is at the upper left corner of a 36×36 canvas, the right one six pixels below and to the
    right; where they overlap, the brighter pixel is kept. The canvas is downsampled by nearest neighbour at
    the pixel centres, as in the paper's code.

    Args:
        left: Digits, uint8, shape ``[n, 28, 28]``.
        right: Digits, uint8, shape ``[n, 28, 28]``.

    Returns:
        Normalized images, float32, shape ``[n, 1, 28, 28]``.
    """
    canvas = torch.zeros(len(left), 1, _CANVAS, _CANVAS, dtype=torch.uint8)
    canvas[:, 0, :_DIGIT, :_DIGIT] = left
    lower = canvas[:, 0, _OFFSET : _OFFSET + _DIGIT, _OFFSET : _OFFSET + _DIGIT]
    torch.maximum(lower, right, out=lower)
    small = interpolate(canvas.float() / 255.0, size=(_DIGIT, _DIGIT), mode="nearest-exact")
    return (small - _MEAN) / _STD


def overlay(left: Source, right: Source, count: int, seed: int) -> Arrays:
    """Draw ``count`` pairs of a left and a right image and compose them.

    A source is a pair of images ``[n, 28, 28]`` and labels ``[n]``; images are used equally often, up to one.
    Returns ``inputs`` ``[count, 1, 28, 28]``, ``left`` and ``right`` ``[count]`` (int64).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(source: Source) -> Source:
        size = len(source[0])
        rounds = -(-count // size)
        chosen = torch.cat([torch.randperm(size, generator=generator) for _ in range(rounds)])[:count]
        return source[0][chosen], source[1][chosen].long()

    (left_images, left_labels), (right_images, right_labels) = draw(left), draw(right)
    return {"inputs": compose(left_images, right_images), "left": left_labels, "right": right_labels}


def divided(source: Source, parts: Mapping[str, Tensor]) -> dict[str, Source]:
    """Return a source's images and labels in each split, given their indices."""
    return {name: (source[0][part], source[1][part]) for name, part in parts.items()}


def overlay_splits(
    left: Mapping[str, Source], right: Mapping[str, Source], per_image: int, seed: int
) -> dict[str, Split]:
    """Compose pairs within each split that both sources have, ``per_image`` for each left image."""
    return {
        name: overlay(source, right[name], per_image * len(source[0]), derived_seed("pairs", name, seed))
        for name, source in left.items()
        if name in right
    }


@dataclass(eq=False)
class MultiMNIST(DividedFile):
    """Pairs composed from the digits of an ``.npz`` with ``images`` and ``labels``.

    The source digits are split before they are composed, so that no digit is in two splits.

    Args:
        path: The ``.npz`` of source digits; ``images`` uint8 ``[n, 28, 28]``, ``labels`` ``[n]``.
        pairs_per_digit: Number of images to compose per source digit of a split.

    For the others see :class:`~multitask.data.base.DividedFile`; ``split_seed`` also seeds the composition.
    """

    pairs_per_digit: int = 1

    def load(self) -> dict[str, Split]:
        """Read the digits, split them, and compose pairs within each split."""
        source = read_npz(Path(self.path), "data.path")
        digits = divided(source, self.parts(len(source[0])))
        return overlay_splits(digits, digits, self.pairs_per_digit, self.split_seed)
