"""Abalone: sex, age rings and shell weight of a sea snail from its other measures."""

import csv
import gzip

import torch
from torch import Tensor

from multitask.data.base import DividedFile, Split
from multitask.data.files import existing

INPUTS = ("length", "diameter", "height", "whole_weight", "shucked_weight", "viscera_weight")
SEXES = ("M", "F", "I")
COLUMNS = ("sex", *INPUTS, "shell_weight", "rings")


class Abalone(DividedFile):
    """4177 abalones: ``inputs`` ``[n, 6]``, ``sex`` ``[n]``, ``rings`` and ``shell_weight`` ``[n]``.

    The inputs are standardized by the mean and standard deviation of the training split. ``sex`` is 0 for male, 1 for
    female and 2 for infant; ``rings`` (age in years minus 1.5) and ``shell_weight`` (units of 200 g) are not scaled.
    (UCI Abalone, 1994.)

    Args:
        path: A CSV file with a header, optionally gzipped.

    The other arguments are those of :class:`~multitask.data.base.DividedFile`.
    """

    def load(self) -> dict[str, Split]:
        """Read the table, standardize the inputs and split it."""
        table = self._read()
        return self.divided(table | {"inputs": self.standardized(table["inputs"], 0)})

    def _read(self) -> dict[str, Tensor]:
        advice = f"it must be a comma-separated table with the columns {', '.join(COLUMNS)}"
        file = existing(self.path, advice)
        content = file.read_bytes()
        try:
            text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(
                f"data.path={self.path} is damaged or not text; it must be a comma-separated table."
            ) from error
        rows = list(csv.DictReader(text.splitlines()))
        if missing := [name for name in COLUMNS if not rows or name not in rows[0]]:
            raise ValueError(f"data.path={self.path} has no column {', '.join(missing)}.")
        if strange := {row["sex"] for row in rows} - set(SEXES):
            raise ValueError(
                f"data.path={self.path} has sex {', '.join(sorted(strange))}; choose from M, F and I."
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
