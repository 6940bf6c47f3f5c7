"""CelebA: forty attributes of a face."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multitask.data.base import Lazy, Split
from multitask.data.files import ImageFiles, first_existing
from multitask.data.loading import SPLITS

# Paths in the original tree and in torchvision's flat layout.
_ATTRIBUTES = ("Anno/list_attr_celeba.txt", "list_attr_celeba.txt")
_PARTITION = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_IMAGES = ("Img/img_align_celeba", "img_align_celeba")


@dataclass(eq=False)
class CelebA(Lazy):
    """Faces with up to forty attributes, 162,770 / 19,867 / 19,962 (Deep Learning Face Attributes in the
    Wild, 2015).

    ``inputs`` ``[3, h, w]`` in [0, 1]; each attribute ``[]``, 0.0 or 1.0.

    Args:
        path: The data set's folder: the original tree (``Anno``, ``Eval``, ``Img``) or a flat layout.
        targets: The attributes to read, as the tasks name them; ``None`` for all.
        height, width: The size of the images in pixels.
    """

    path: str
    targets: Sequence[str] | None = None
    height: int = 64
    width: int = 64
    _: KW_ONLY
    batch_size: int | None = 256
    eval_batch_size: int = 256

    def load(self) -> dict[str, Split]:
        """Read the lists; images are read on demand."""
        names, files, values = self._attributes()
        folder = self._find(_IMAGES)
        lines = self._find(_PARTITION).read_text(encoding="utf-8").splitlines()
        partition = dict(line.split() for line in lines if line)
        if lost := [file for file in files if file not in partition]:
            raise ValueError(
                f"data.path={self.path}: {lost[0]} is in the list of attributes, but not in that of splits."
            )
        targets = names if self.targets is None else [name for name in self.targets if name != "inputs"]
        if unknown := [name for name in targets if name not in names]:
            raise ValueError(
                f"tasks.*.target={unknown[0]} is not an attribute of CelebA; choose from {', '.join(names)}."
            )
        of_file = np.array([int(partition[file]) for file in files])
        splits: dict[str, Split] = {}
        for number, split in enumerate(SPLITS):
            chosen = np.flatnonzero(of_file == number)
            if len(chosen):
                columns = {name: values[chosen, names.index(name)] for name in targets}
                images = [folder / files[i] for i in chosen]
                splits[split] = ImageFiles(images, columns, (self.height, self.width))
        return splits

    def _attributes(self) -> tuple[list[str], list[str], Tensor]:
        """Return attribute names, file names, and values ``[n, attributes]``."""
        path = self._find(_ATTRIBUTES)
        count, header, *lines = path.read_text(encoding="utf-8").splitlines()
        names, rows = header.split(), [line.split() for line in lines if line]
        if len(rows) != int(count) or any(len(row) != len(names) + 1 for row in rows):
            raise ValueError(
                f"data.path={self.path}: {path} must have {count.strip()} lines, each of a file name and "
                f"{len(names)} numbers."
            )
        values = np.array([row[1:] for row in rows], dtype=np.int8)
        return names, [row[0] for row in rows], torch.from_numpy((values > 0).astype(np.float32))

    def _find(self, candidates: Sequence[str]) -> Path:
        return first_existing(
            (Path(self.path) / candidate for candidate in candidates),
            f"data.path={self.path} has neither {' nor '.join(candidates)}; it must hold CelebA's attribute "
            "list, its list of splits and the folder img_align_celeba.",
        )
