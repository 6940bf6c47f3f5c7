"""Bring your own arrays: an ``.npz`` with inputs and one array a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from multitask.data.base import DataModule, Split
from multitask.data.loading import split_indices

_SPLITS = ("train", "val", "test")


class Npz(DataModule):
    """Arrays of an ``.npz``, all with the same first dimension.

    Args:
        path: The file. Pickled objects in it are refused, never loaded.
        inputs: Name of the array of inputs.
        targets: Names of the arrays to read as targets, as the tasks name them. An array
            ``mask/<target>`` beside one says by true and false what of it is labelled.
        split: Shares of train, validation and test; or the name of an array in the file that
            gives each example's split as ``train``/``val``/``test`` or 0/1/2.
        split_seed: Seed of a split by shares.
        batch_size: See :class:`~multitask.data.base.DataModule`.
        eval_batch_size: See there.
        seed: See there.
    """

    def __init__(
        self,
        path: str | None,
        targets: Sequence[str],
        inputs: str = "inputs",
        split: Sequence[float] | str = (0.7, 0.1, 0.2),
        split_seed: int = 0,
        batch_size: int | None = 128,
        eval_batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.path = path
        self.inputs = inputs
        self.targets = [name for name in targets if name != "inputs"]
        self.split = split
        self.split_seed = split_seed

    def load(self) -> dict[str, Split]:
        """Read, check and split the arrays.

        Raises:
            FileNotFoundError: If the file is not there.
            ValueError: If an array is missing, holds objects, or is not as long as the inputs.
        """
        arrays = self._read()
        tensors = {"inputs": _tensor(self.inputs, arrays[self.inputs])}
        tensors |= {name: _tensor(name, arrays[name]) for name in self.targets}
        masks = [name for name in arrays if name.startswith("mask/")]
        tensors |= {name: torch.from_numpy(arrays[name].astype(bool)) for name in masks}
        count = len(tensors["inputs"])
        for name in (*self.targets, *masks):
            if len(tensors[name]) != count:
                raise ValueError(
                    f"data.path={self.path}: '{name}' has {len(tensors[name])} rows and '{self.inputs}' {count}; "
                    "all arrays need one row an example."
                )
        parts = self._parts(arrays, count)
        return {
            name: {key: values[part] for key, values in tensors.items()}
            for name, part in zip(_SPLITS, parts, strict=True)
            if len(part)
        }

    def _read(self) -> Mapping[str, np.ndarray]:
        if self.path is None or not Path(self.path).is_file():
            raise FileNotFoundError(
                f"data.path={self.path} is not there; give an .npz with '{self.inputs}' and one array for each of "
                f"{', '.join(self.targets)}."
            )
        wanted = [self.inputs, *self.targets] + ([self.split] if isinstance(self.split, str) else [])
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if not isinstance(file, np.lib.npyio.NpzFile):
                    raise ValueError("it is a single array, not an .npz")
                missing = [name for name in wanted if name not in file.files]
                if missing:
                    raise ValueError(f"it has no '{', '.join(missing)}'; it has {', '.join(file.files)}")
                masks = [f"mask/{name}" for name in self.targets if f"mask/{name}" in file.files]
                return {name: file[name] for name in (*wanted, *masks)}
        except (ValueError, OSError) as error:
            raise ValueError(f"data.path={self.path} cannot be read: {error}.") from error

    def _parts(self, arrays: Mapping[str, np.ndarray], count: int) -> Sequence[torch.Tensor]:
        if not isinstance(self.split, str):
            first, second, third = self.split
            return split_indices(count, (first, second, third), self.split_seed)
        column = arrays[self.split]
        if column.dtype.kind in "US":
            column = column.astype(str)
            numbers = np.select([column == name for name in _SPLITS], [0, 1, 2], -1)
        else:
            numbers = column
        if numbers.shape != (count,) or not np.isin(numbers, (0, 1, 2)).all():
            raise ValueError(
                f"data.split={self.split}: the array must give one of train, val, test (or 0, 1, 2) for each of the "
                f"{count} examples."
            )
        return [torch.from_numpy(np.flatnonzero(numbers == i)) for i in range(3)]


def _tensor(name: str, array: np.ndarray) -> torch.Tensor:
    """Return floats as float32 and integers as int64, what losses and layers expect."""
    if array.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if array.dtype.kind in "iu":
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype.kind == "b":
        return torch.from_numpy(array.astype(np.float32))
    raise ValueError(f"'{name}' is of type {array.dtype}; give floats, integers or booleans")
