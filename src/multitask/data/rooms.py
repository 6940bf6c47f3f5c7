"""Rooms: generated images with exact classes, depth and normals."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import default_collate

from multitask.data.augmentation import Augmented, DenseAugmentation
from multitask.data.base import Lazy, Split
from multitask.data.loading import SPLITS, Arrays, Made, check_counts
from multitask.data.scenes import render, sample


def room(
    size: tuple[int, int], seed: int, stream: int, max_depth: float, dropout: float, index: int
) -> Arrays:
    """Render a random room, which depends on its seed, stream and index alone.

    ``stream`` distinguishes the splits; for the other arguments see :class:`Rooms`.
    """
    rng = np.random.default_rng([seed, stream, index])
    scene, camera = sample(rng, *size)
    view = render(scene, camera, rng, max_depth, dropout)
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in view.items()}


@dataclass(eq=False)
class Rooms(Lazy):
    """Furnished rooms seen by an RGB-D camera, ray-cast with exact targets.

    ``inputs`` ``[3, h, w]`` in [0, 1]; ``segmentation`` ``[h, w]``: 8 classes, −1 where unlabelled (clutter);
    ``depth`` ``[1, h, w]`` in metres along the camera's axis, 0 where invalid; ``normals`` ``[3, h, w]``: unit
    vectors in camera axes (x right, y down, z forward), zero where invalid.

    Args:
        examples: Number of rooms for train, validation and test.
        height, width: The size of the images in pixels.
        max_depth: Range of the depth camera in metres.
        dropout: Share of pixels without a depth measurement.
        scene_seed: Seed of the rooms: fixed, so that runs of all seeds share one test set.
        in_memory: Whether to render all images before training; otherwise they are rendered on demand.
        augmentation: Augmentation of the training examples; ``None`` for none.
    """

    examples: Sequence[int] = (192, 32, 32)
    height: int = 48
    width: int = 64
    max_depth: float = 6.0
    dropout: float = 0.02
    scene_seed: int = 0
    in_memory: bool = True
    augmentation: DenseAugmentation | None = None
    _: KW_ONLY
    batch_size: int | None = 16
    eval_batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self.examples, least=0)
        if not self.examples[0]:
            raise ValueError(
                f"data.examples={list(self.examples)} leaves no training examples; raise the first."
            )

    def load(self) -> dict[str, Split]:
        """Create the splits, rendering them if they are kept in memory."""
        splits: dict[str, Split] = {}
        for stream, (name, count) in enumerate(zip(SPLITS, self.examples, strict=True)):
            if not count:
                continue
            settings = ((self.height, self.width), self.scene_seed, stream, self.max_depth, self.dropout)
            images = Made(count, partial(room, *settings))
            splits[name] = default_collate([images[i] for i in range(count)]) if self.in_memory else images
        if self.augmentation is not None:
            splits["train"] = Augmented(splits["train"], self.augmentation, self.seed)
        return splits
