"""Reading of named arrays from ``.npz`` files, without pickles."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def read_arrays(
    path: Path, key: str, required: Sequence[str], optional: Sequence[str] | None = ()
) -> dict[str, np.ndarray]:
    """Return arrays of an ``.npz`` by name.

    Args:
        path: The file.
        key: The config key that it comes from, for errors.
        required: Names of required arrays.
        optional: Names of optional arrays; ``None`` for all others.

    Raises:
        ValueError: If the file is not an ``.npz``, is damaged, lacks an array, or contains pickled objects.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{key}={path} is damaged or not an .npz; save arrays with numpy.savez. Pickles are never loaded."
        )
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in required if name not in file.files]
        if missing:
            raise ValueError(f"{key}={path} has no '{', '.join(missing)}'; it has {', '.join(file.files)}.")
        names = [
            *required,
            *(name for name in (file.files if optional is None else optional) if name in file.files),
        ]
        names = list(dict.fromkeys(names))
        return {name: _read(file, name, f"{key}={path}") for name in names}


def _read(file: np.lib.npyio.NpzFile, name: str, where: str) -> np.ndarray:
    try:
        return file[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{where}: '{name}' cannot be read: it holds pickled objects or is damaged; give floats, integers or "
            "booleans."
        ) from error
