"""Abalone: sex, age rings and shell weight of a sea snail from its other measures."""

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from multitask.data.base import DataModule, Split
from multitask.data.loading import split_indices

INPUTS = ("length", "diameter", "height", "whole_weight", "shucked_weight", "viscera_weight")
SEXES = ("M", "F", "I")
COLUMNS = ("sex", *INPUTS, "shell_weight", "rings")


class Abalone(DataModule):
    """4177 abalones: ``inputs`` ``[n, 6]``, ``sex`` ``[n]``, ``rings`` and ``shell_weight`` ``[n]``.

    The inputs are standardized with mean and deviation of the training split. ``sex`` is 0 male, 1 female,
    2 infant; ``rings`` (years less 1.5) and ``shell_weight`` (units of 200 g) stay as they were measured.
    (UCI Abalone, 1994.)

    Args:
        path: The file: comma-separated, with a line of names, gzipped or not.
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
        """Read the table, split it and standardize the inputs.

        Raises:
            FileNotFoundError: If the file is not there.
            ValueError: If a column is missing, or a value is none that can be.
        """
        table = self._read()
        parts = split_indices(len(table["inputs"]), self.split, self.split_seed)
        known = table["inputs"][parts[0]]
        table["inputs"] = (table["inputs"] - known.mean(0)) / known.std(0)
        return {
            name: {key: values[part] for key, values in table.items()}
            for name, part in zip(("train", "val", "test"), parts, strict=True)
            if len(part)
        }

    def _read(self) -> dict[str, Tensor]:
        if not self.path.is_file():
            raise FileNotFoundError(
                f"data.path={self.path} is not there; it must be a comma-separated table with the columns "
                f"{', '.join(COLUMNS)}."
            )
        content = self.path.read_bytes()
        try:
            text = (gzip.decompress(content) if self.path.suffix == ".gz" else content).decode()
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(
                f"data.path={self.path} is damaged or no text; it must be a comma-separated table."
            ) from error
        rows = list(csv.DictReader(text.splitlines()))
        missing = [name for name in COLUMNS if not rows or name not in rows[0]]
        if missing:
            raise ValueError(f"data.path={self.path} has no column {', '.join(missing)}.")
        strange = {row["sex"] for row in rows} - set(SEXES)
        if strange:
            raise ValueError(
                f"data.path={self.path} has sex {', '.join(sorted(strange))}; known are M, F and I."
            )
        try:
            numbers = {name: torch.tensor([float(row[name]) for row in rows]) for name in COLUMNS[1:]}
        except (TypeError, ValueError) as error:
            raise ValueError(f"data.path={self.path} has a row without a number: {error}.") from error
        return {
            "inputs": torch.stack([numbers[name] for name in INPUTS], dim=1),
            "sex": torch.tensor([SEXES.index(row["sex"]) for row in rows]),
            "rings": numbers["rings"],
            "shell_weight": numbers["shell_weight"],
        }
