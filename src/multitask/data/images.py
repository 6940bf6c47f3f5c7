"""Single labelled images of an ``.npz``."""

from collections.abc import Sequence
from pathlib import Path

from multitask.data.base import DataModule, Split
from multitask.data.digits import read_npz
from multitask.data.loading import split_indices


class LabelledImages(DataModule):
    """``inputs`` ``[n, 1, 28, 28]``, standardized by the training images, and ``label`` ``[n]``.

    Args:
        path: The ``.npz``: ``images`` uint8 ``[n, 28, 28]``, ``labels`` ``[n]``.
        split: Shares of train, validation and test.
        split_seed: Seed of the split: fixed, so that runs of all seeds share one test set.
        batch_size: See :class:`~multitask.data.base.DataModule`.
        eval_batch_size: See there.
        seed: See there.
    """

    def __init__(
        self,
        path: str,
        split: Sequence[float] = (0.7, 0.1, 0.2),
        split_seed: int = 0,
        batch_size: int | None = 128,
        eval_batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.path = Path(path)
        self.split = split
        self.split_seed = split_seed

    def load(self) -> dict[str, Split]:
        """Read and split the images.

        Raises:
            FileNotFoundError: If the file is not there.
        """
        images, labels = read_npz(self.path, "data.path")
        parts = split_indices(len(images), self.split, self.split_seed)
        pixels = images.float() / 255.0
        mean, std = pixels[parts[0]].mean(), pixels[parts[0]].std()
        inputs, labels = ((pixels - mean) / std).unsqueeze(1), labels.long()
        return {
            name: {"inputs": inputs[part], "label": labels[part]}
            for name, part in zip(("train", "val", "test"), parts, strict=True)
            if len(part)
        }
