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
        """Read and split the images.

        Raises:
            FileNotFoundError: If the file does not exist.
        """
        images, labels = read_npz(Path(self.path), "data.path")
        parts = self.parts(len(images))
        pixels = images.float() / 255.0
        train = pixels[parts.get("train", [])]
        mean, std = train.mean(), train.std()
        inputs, labels = ((pixels - mean) / std).unsqueeze(1), labels.long()
        return {name: {"inputs": inputs[part], "label": labels[part]} for name, part in parts.items()}
