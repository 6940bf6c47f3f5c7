"""Labelled images from an ``.npz``."""

from pathlib import Path

from multitask.data.base import DividedFile, Split
from multitask.data.digits import read_npz


class LabelledImages(DividedFile):
    """``inputs`` ``[n, 1, 28, 28]``, standardized by the training split, and ``label`` ``[n]``.

    Args:
        path: The ``.npz``: ``images`` uint8 ``[n, 28, 28]``, ``labels`` ``[n]``.

    The other arguments are those of :class:`~multitask.data.base.DividedFile`.
    """

    def load(self) -> dict[str, Split]:
        """Read, standardize and split the images."""
        images, labels = read_npz(Path(self.path), "data.path")
        inputs = self.standardized(images.float() / 255.0).unsqueeze(1)
        return self.divided({"inputs": inputs, "label": labels.long()})
