"""User-supplied arrays: an ``.npz`` with inputs and one array per task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multitask.data.base import InMemory, Split
from multitask.data.files import existing, read_arrays
from multitask.data.loading import SPLITS, split_indices


@dataclass(eq=False)
class Npz(InMemory):
    """Arrays of an ``.npz``, all with the same first dimension.

    Args:
        path: The file. Pickled objects are never loaded.
        inputs: Name of the array of inputs.
        targets: Names of the target arrays, as in the tasks, which keep float64; ``None`` for all arrays, as float32.
            A boolean array ``mask/<target>`` marks which values of a target are labelled.
        split: Shares of train, validation and test; or the name of an array with the split of each example, as
            ``train``/``val``/``test`` or 0/1/2.
        split_seed: Seed of a split by shares.
    """

    path: str | None
    targets: Sequence[str] | None
    inputs: str = "inputs"
    split: Sequence[float] | str = (0.7, 0.1, 0.2)
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets is not None:
            self.targets = [name for name in self.targets if name != "inputs"]
        self._rows: dict[str, torch.Tensor] = {}

    def load(self) -> dict[str, Split]:
        """Read, check and split the arrays."""
        arrays = self._read()
        where = f"data.path={self.path}"
        tensors = {"inputs": _tensor(f"{where}: '{self.inputs}'", arrays[self.inputs])}
        masks = [name for name in arrays if name.startswith("mask/")]
        exact, targets = self.targets is not None, self.targets
        if targets is None:
            targets = [name for name in arrays if name not in ("inputs", self.inputs, self.split, *masks)]
        tensors |= {name: _tensor(f"{where}: '{name}'", arrays[name], exact) for name in targets}
        tensors |= {name: _mask(f"{where}: '{name}'", arrays[name]) for name in masks}
        count = len(tensors["inputs"])
        for name in (*targets, *masks):
            if len(tensors[name]) != count:
                raise ValueError(
                    f"{where}: '{name}' has {len(tensors[name])} rows and '{self.inputs}' {count}; all arrays need "
                    "one row per example."
                )
        self._rows = self._parts(arrays, count)
        return {
            name: {key: values[rows] for key, values in tensors.items()} for name, rows in self._rows.items()
        }

    def ids(self, split: str) -> Sequence[int]:
        """Return each example's row in the file."""
        self.setup()
        rows: list[int] = self._rows[split].tolist()
        return rows

    def _read(self) -> Mapping[str, np.ndarray]:
        wanted = ", ".join(self.targets or ["your targets"])
        path = existing(self.path, f"give an .npz with '{self.inputs}' and one array for each of {wanted}")
        named = [self.split] if isinstance(self.split, str) else []
        masks = None if self.targets is None else [f"mask/{name}" for name in self.targets]
        return read_arrays(path, "data.path", [self.inputs, *(self.targets or []), *named], masks)

    def _parts(self, arrays: Mapping[str, np.ndarray], count: int) -> dict[str, torch.Tensor]:
        if not isinstance(self.split, str):
            return split_indices(count, self.split, self.split_seed)
        numbers = arrays[self.split]
        if numbers.dtype.kind in "US":
            numbers = np.select([numbers.astype(str) == name for name in SPLITS], [0, 1, 2], -1)
        if numbers.shape != (count,) or not np.isin(numbers, (0, 1, 2)).all():
            raise ValueError(
                f"data.split={self.split}: the array must give one of train, val, test (or 0, 1, 2) for each of the "
                f"{count} examples."
            )
        rows = {name: torch.from_numpy(np.flatnonzero(numbers == i)) for i, name in enumerate(SPLITS)}
        return {name: part for name, part in rows.items() if len(part)}


def _tensor(where: str, array: np.ndarray, exact: bool = False) -> torch.Tensor:
    """Return floats and booleans as float32, or with ``exact`` float64 as it is, and integers as int64."""
    if array.ndim == 0:
        raise ValueError(f"{where} is a single value; give one row per example.")
    if array.dtype.kind in "fb":
        wide = exact and array.dtype.kind == "f" and array.dtype.itemsize >= 8
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64 if wide else np.float32))
    if array.dtype.kind in "iu":
        return torch.from_numpy(array.astype(np.int64))
    raise ValueError(f"{where} is of type {array.dtype}; give floats, integers or booleans.")


def _mask(where: str, array: np.ndarray) -> torch.Tensor:
    if array.ndim == 0 or not (array.dtype.kind == "b" or np.isin(array, (0, 1)).all()):
        raise ValueError(f"{where} is a mask and must be true or false, 1 or 0, everywhere.")
    return torch.from_numpy(array.astype(bool))
