"""Dense data sets in MTAN's layout: one ``.npy`` per image and target."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multitask.data.loading import Arrays, Made


class NpyFolder(Made):
    """Images with their targets, read on demand.

    ``folder`` contains one folder for the images and for each target, with ``0.npy``, ``1.npy`` and so on. Files are
    memory-mapped and never unpickled. Examples have ``inputs`` ``[3, h, w]``, classes ``[h, w]`` (int64), depth
    ``[1, h, w]`` and normals ``[3, h, w]``, floats as float32.

    Args:
        folder: The folder of one split.
        kinds: The subfolder of each key of the examples.
        key: The config key that the folder comes from, for ``FileNotFoundError``.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, str], key: str = "data.path") -> None:
        self.folder = folder
        self.kinds = dict(kinds)
        self.key = key
        images = folder / self.kinds["inputs"]
        super().__init__(len(list(images.glob("*.npy"))) if images.is_dir() else 0, self._example)
        layout = f"{{{','.join(self.kinds.values())}}}/{{0,1,…}}.npy"
        if not self.count:
            raise FileNotFoundError(f"{key}: {folder} has no images; it must hold {layout}.")
        for kind in self.kinds.values():
            missing = next((i for i in range(self.count) if not self._file(kind, i).is_file()), None)
            if missing is not None:
                raise FileNotFoundError(
                    f"{key}: {self._file(kind, missing)} is missing; {folder} must hold {layout}, the same "
                    "numbers in each."
                )

    def _file(self, kind: str, index: int) -> Path:
        return self.folder / kind / f"{index}.npy"

    def _example(self, index: int) -> Arrays:
        return {name: self._read(name, self._file(kind, index)) for name, kind in self.kinds.items()}

    def _read(self, name: str, file: Path) -> Tensor:
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{self.key}: {file} cannot be read: {error}.") from error
        if array.ndim != 2 and (name == "segmentation" or array.ndim != 3 or array.shape[2] not in (1, 3)):
            wanted = "[h, w]" if name == "segmentation" else "[h, w] or [h, w, channels]"
            raise ValueError(f"{self.key}: {file} has the shape {list(array.shape)} and must be {wanted}.")
        if name == "segmentation":
            return torch.from_numpy(np.array(array, dtype=np.int64))
        if array.dtype.kind != "f":
            raise ValueError(f"{self.key}: {file} is of type {array.dtype} and must hold floats.")
        values = torch.from_numpy(np.array(array, dtype=np.float32))
        # Channels are the last dimension; depth may lack it.
        return values.unsqueeze(0) if values.ndim == 2 else values.movedim(-1, 0).contiguous()
