"""Finds the files of data sets; reads images, and named arrays from ``.npz`` files without pickles."""

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multitask.data.loading import Arrays, Made


def existing(path: str | Path | None, advice: str, key: str = "data.path", folder: bool = False) -> Path:
    """Return the path of a file, or of a folder, that exists.

    Raises ``FileNotFoundError`` otherwise, with the config key that the path comes from and advice on how to set it.
    """
    if path is None or not (Path(path).is_dir() if folder else Path(path).is_file()):
        what = f"{key} is null" if path is None else f"{key}={path} does not exist"
        raise FileNotFoundError(f"{what}; {advice}.")
    return Path(path)


def first_existing(candidates: Iterable[Path], otherwise: str) -> Path:
    """Return the first path that exists; raises ``FileNotFoundError`` with the message ``otherwise`` if none does."""
    for path in candidates:
        if path.exists():
            return path
    raise FileNotFoundError(otherwise)


def read_arrays(
    path: Path, key: str, required: Sequence[str], optional: Sequence[str] | None = ()
) -> dict[str, np.ndarray]:
    """Return the required arrays of an ``.npz``, and the optional ones that it has (``None`` for all), by name.

    Raises ``ValueError``, with the config key that the path comes from, if the file is not an ``.npz``, is damaged,
    lacks an array, or contains pickled objects.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{key}={path} is damaged or not an .npz; save arrays with numpy.savez. Pickles are never loaded."
        )
    with np.load(path, allow_pickle=False) as file:
        if missing := [name for name in required if name not in file.files]:
            raise ValueError(f"{key}={path} has no '{', '.join(missing)}'; it has {', '.join(file.files)}.")
        others = [name for name in file.files if optional is None or name in optional]
        return {name: _array(file, name, f"{key}={path}") for name in dict.fromkeys([*required, *others])}


def _array(file: np.lib.npyio.NpzFile, name: str, where: str) -> np.ndarray:
    try:
        return file[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{where}: '{name}' cannot be read: it holds pickled objects or is damaged; give floats, integers or "
            "booleans."
        ) from error


class ImageFiles(Made):
    """Images, resized to a height and width, with the targets of all files by name, in the same order."""

    def __init__(self, files: Sequence[Path], targets: Arrays, size: tuple[int, int]) -> None:
        super().__init__(len(files), partial(_example, files, targets, size))


def _example(files: Sequence[Path], targets: Arrays, size: tuple[int, int], index: int) -> Arrays:
    return {"inputs": _image(files[index], size)} | {name: values[index] for name, values in targets.items()}


def _image(file: Path, size: tuple[int, int]) -> Tensor:
    """Return an image as ``[3, height, width]`` in [0, 1], resized with antialiasing."""
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255.0)
