"""Labelled image files, read on demand."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multitask.data.loading import Arrays, Made


class ImageFiles(Made):
    """Images, resized to a height and width, with the targets of all files by name, in the same order."""

    def __init__(self, files: Sequence[Path], targets: Arrays, size: tuple[int, int]) -> None:
        super().__init__(len(files), partial(_example, files, targets, size))


def _example(files: Sequence[Path], targets: Arrays, size: tuple[int, int], index: int) -> Arrays:
    return {"inputs": _read(files[index], size)} | {name: values[index] for name, values in targets.items()}


def _read(file: Path, size: tuple[int, int]) -> Tensor:
    """Return an image as ``[3, height, width]`` in [0, 1], resized with antialiasing."""
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255.0)
