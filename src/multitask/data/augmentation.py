"""Geometrically consistent augmentation of images with classes, depth and normals."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from multitask.data.loading import Arrays, count_of, example_of
from multitask.randomness import derived_seed


class DenseAugmentation:
    """Random zoom and random horizontal flip of an image with its dense targets.

    A zoom by s crops a random window of 1/s the height and width and resizes it to the original size. This is
    what the same camera would see of a scene s times smaller: depth is divided by s, inverse depth is
    multiplied by s, and normals are unchanged. A flip mirrors the scene: the x component of normals changes
    sign. The image is resampled bilinearly, targets by nearest neighbour, since interpolating between classes,
    valid and invalid depths, or the two sides of an edge is meaningless. (End-to-End Multi-Task Learning with
    Attention, 2019, whose scales are the default.)

    ``depth``, ``inverse_depth``, ``normals``: keys of the targets of each type; ``inputs`` is the image, and all
    other keys are resampled like classes. ``scales``: zooms to choose from; ``flip``: probability. Raises
    ``ValueError`` for a zoom below 1, which would reach beyond the image.
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0, 1.2, 1.5),
        flip: float = 0.5,
        depth: Sequence[str] = ("depth",),
        inverse_depth: Sequence[str] = (),
        normals: Sequence[str] = ("normals",),
    ) -> None:
        if not scales or min(scales) < 1:
            raise ValueError(f"data.augmentation.scales={list(scales)} must name zooms of 1 or more.")
        if not 0 <= flip <= 1:
            raise ValueError(f"data.augmentation.flip={flip} is a probability, between 0 and 1.")
        self.scales = list(scales)
        self.flip = flip
        self.depth = set(depth)
        self.inverse_depth = set(inverse_depth)
        self.normals = set(normals)

    def __call__(self, example: Arrays, generator: torch.Generator) -> Arrays:
        """Augment one example: ``inputs`` ``[c, h, w]``, targets ``[h, w]`` or ``[c, h, w]``."""
        height, width = example["inputs"].shape[-2:]
        scale = self.scales[int(torch.randint(len(self.scales), (), generator=generator))]
        rows, columns = int(height / scale), int(width / scale)
        top = int(torch.randint(height - rows + 1, (), generator=generator))
        left = int(torch.randint(width - columns + 1, (), generator=generator))
        flipped = float(torch.rand((), generator=generator)) < self.flip
        example = self.zoom(example, top, left, rows, columns)
        return self.mirror(example) if flipped else example

    def zoom(self, example: Arrays, top: int, left: int, rows: int, columns: int) -> Arrays:
        """Resize a window to the size of the image; depth is scaled by the zoom along the height."""
        height, width = example["inputs"].shape[-2:]
        if (rows, columns) == (height, width):
            return example
        scale = height / rows
        zoomed = {}
        for name, values in example.items():
            window = values[..., top : top + rows, left : left + columns]
            zoomed[name] = _resize(
                window, (height, width), "bilinear" if name == "inputs" else "nearest-exact"
            )
            if name in self.depth:
                zoomed[name] = zoomed[name] / scale
            elif name in self.inverse_depth:
                zoomed[name] = zoomed[name] * scale
        return zoomed

    def mirror(self, example: Arrays) -> Arrays:
        """Swap left and right."""
        mirrored = {name: values.flip(-1) for name, values in example.items()}
        for name in self.normals & mirrored.keys():
            mirrored[name] = mirrored[name] * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
        return mirrored


def _resize(values: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resample ``[..., h, w]``; integers go through float64, which represents them exactly."""
    planes = values.reshape(1, -1, *values.shape[-2:])
    if values.is_floating_point():
        resized = interpolate(planes, size, mode=mode)
    else:
        resized = interpolate(planes.double(), size, mode=mode).to(values.dtype)
    return resized.reshape(*values.shape[:-2], *size)


class Augmented(Dataset[Arrays]):
    """Examples with a random augmentation that depends on seed, epoch and index alone.

    Neither the number of workers nor resuming changes the examples. The loader sets the epoch.
    """

    def __init__(
        self, examples: Arrays | Dataset[Arrays], augmentation: DenseAugmentation, seed: int
    ) -> None:
        self.examples = examples
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which the random draws depend on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return count_of(self.examples)

    def __getitem__(self, index: int) -> Arrays:
        generator = torch.Generator().manual_seed(derived_seed("augmentation", self.seed, self.epoch, index))
        return self.augmentation(example_of(self.examples, index), generator)
