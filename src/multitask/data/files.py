"""Finds the files of data sets, and reads named arrays from ``.npz`` files, without pickles."""

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


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
        return {name: _read(file, name, f"{key}={path}") for name in dict.fromkeys([*required, *others])}


def _read(file: np.lib.npyio.NpzFile, name: str, where: str) -> np.ndarray:
    try:
        return file[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{where}: '{name}' cannot be read: it holds pickled objects or is damaged; give floats, integers or "
            "booleans."
        ) from error
