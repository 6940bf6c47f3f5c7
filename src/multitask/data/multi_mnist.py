"""MultiMNIST: two overlapping digits per image, composed as in Sener & Koltun (2018)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from multitask.data.base import DividedFile, Split
from multitask.data.digits import read_npz
from multitask.randomness import derived_seed

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


def pairs(images: Tensor, labels: Tensor, count: int, seed: int) -> dict[str, Tensor]:
    """Draw ``count`` pairs of digits and compose them.

    Digits are used equally often (up to one) on the left, and likewise on the right.

    Args:
        images: Digits, uint8, shape ``[n, 28, 28]``.
        labels: Their classes, shape ``[n]``.
        count: Number of pairs.
        seed: Seed of the draw.

    Returns:
        ``inputs`` ``[count, 1, 28, 28]``, ``left`` and ``right`` ``[count]`` (int64).
    """
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-count // len(images))
    left, right = (
        torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])[:count]
        for _ in range(2)
    )
    return {
        "inputs": compose(images[left], images[right]),
        "left": labels[left].long(),
        "right": labels[right].long(),
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
        """Read the digits, split them, and compose pairs within each split.

        Raises:
            FileNotFoundError: If the file does not exist.
        """
        images, labels = read_npz(Path(self.path), "data.path")
        return {
            name: pairs(
                images[part],
                labels[part],
                self.pairs_per_digit * len(part),
                derived_seed("pairs", name, self.split_seed),
            )
            for name, part in self.parts(len(images)).items()
        }
