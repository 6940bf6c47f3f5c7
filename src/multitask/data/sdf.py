"""Reader for molecules in SDF files, version V2000."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


def read_molecules(path: Path, largest: int) -> Tensor:
    """Return the atoms of every molecule, ``[n, largest, 4]``: atomic number and x, y, z in ångström, zero-padded.

    Bonds and properties are skipped. Raises ``ValueError`` for elements other than H, C, N, O and F, for more
    than ``largest`` atoms, and for a file that ends within a molecule.
    """
    rows: list[float] = []
    count = 0
    with path.open(encoding="utf-8") as file:
        lines = iter(file)
        for _ in lines:  # the name, a molecule's first line
            atoms = list(_atoms(lines, path, count, largest))
            rows += [number for atom in atoms for number in atom]
            rows += [0.0] * (4 * (largest - len(atoms)))
            count += 1
    return torch.tensor(rows).view(count, largest, 4)


def _atoms(lines: Iterator[str], path: Path, molecule: int, largest: int) -> Iterator[tuple[float, ...]]:
    """Yield the atoms of the molecule whose name was just read, and skip to its end mark."""
    try:
        next(lines), next(lines)
        atoms = int(next(lines)[:3])
        if atoms > largest:
            raise ValueError(f"{path}: molecule {molecule} has {atoms} atoms, more than {largest}.")
        for _ in range(atoms):
            x, y, z, element, *_ = next(lines).split()
            if element not in ELEMENTS:
                raise ValueError(
                    f"{path}: molecule {molecule} has an atom {element}; supported are {', '.join(ELEMENTS)}."
                )
            yield ELEMENTS[element], float(x), float(y), float(z)
        while next(lines).rstrip() != "$$$$":
            pass
    except StopIteration as error:
        raise ValueError(f"{path} ends within molecule {molecule}.") from error
