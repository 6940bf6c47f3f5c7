"""QM9: properties of small molecules from the positions of their atoms."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor

from multitask.data.base import DividedFile, Split
from multitask.data.files import first_existing

LARGEST = 29
_HARTREE = 27.211386245988  # eV
_KCAL_MOL = 0.043364106370  # eV
# Target → column of gdb9.sdf.csv and conversion factor to the unit used in the papers. Energies are atomization
# energies, as in the papers.
PROPERTIES = {
    "mu": ("mu", 1.0),  # D
    "alpha": ("alpha", 1.0),  # a0³
    "homo": ("homo", _HARTREE),  # eV
    "lumo": ("lumo", _HARTREE),  # eV
    "r2": ("r2", 1.0),  # a0²
    "zpve": ("zpve", _HARTREE),  # eV
    "u0": ("u0_atom", _KCAL_MOL),  # eV
    "u": ("u298_atom", _KCAL_MOL),  # eV
    "h": ("h298_atom", _KCAL_MOL),  # eV
    "g": ("g298_atom", _KCAL_MOL),  # eV
    "cv": ("cv", 1.0),  # cal/(mol K)
}
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
_FILES = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
_HEADER_LINES = 9  # of uncharacterized.txt


@dataclass(eq=False)
class QM9(DividedFile):
    """130,831 molecules of up to 29 atoms (Quantum Chemistry Structures and Properties of 134 Kilo
    Molecules, 2014).

    ``inputs`` ``[29, 4]``: atomic number (0 for padding) and position in ångström; each property ``[]`` in the
    units of "Neural Message Passing for Quantum Chemistry" (2017).

    Args:
        path: The folder with ``gdb9.sdf``, ``gdb9.sdf.csv`` and ``uncharacterized.txt``, possibly in ``raw``.
        targets: The properties to read, as the tasks name them; ``None`` for all.
    """

    split: Sequence[float] = (0.84, 0.08, 0.08)
    targets: Sequence[str] | None = None
    _: KW_ONLY
    batch_size: int | None = 120
    eval_batch_size: int = 240

    def __post_init__(self) -> None:
        super().__post_init__()
        self.properties = list(PROPERTIES if self.targets is None else self.targets)

    def load(self) -> dict[str, Split]:
        """Read and split the molecules, excluding those whose geometry is uncertain."""
        if unknown := [name for name in self.properties if name not in PROPERTIES]:
            raise ValueError(
                f"tasks.*.target={unknown[0]} is not a property of QM9; choose from {', '.join(PROPERTIES)}."
            )
        molecules, table, doubtful = (self._find(name) for name in _FILES)
        atoms = read_molecules(molecules, LARGEST)
        properties = self._properties(table)
        if any(len(values) != len(atoms) for values in properties.values()):
            raise ValueError(
                f"data.path={self.path}: {molecules} has {len(atoms)} molecules, but {table} has a different number."
            )
        kept = torch.ones(len(atoms), dtype=torch.bool)
        kept[_numbers(doubtful)] = False
        return self.divided({"inputs": atoms[kept], **{k: values[kept] for k, values in properties.items()}})

    def _properties(self, path: Path) -> dict[str, Tensor]:
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        # In float64, since the raw energies are far from zero.
        return {
            name: torch.tensor([float(row[column]) for row in rows], dtype=torch.float64).mul(unit)
            for name, (column, unit) in PROPERTIES.items()
            if name in self.properties
        }

    def _find(self, name: str) -> Path:
        return first_existing(
            (Path(self.path) / name, Path(self.path) / "raw" / name),
            f"data.path={self.path} has no {name}; it must contain {', '.join(_FILES)} of QM9.",
        )


def _numbers(path: Path) -> list[int]:
    """Return the zero-based indices of the listed molecules; the file has a header, one-based numbers and a total."""
    words = [line.split() for line in path.read_text(encoding="utf-8").splitlines()[_HEADER_LINES:]]
    return [
        int(line[0]) - 1 for line in words if len(line) > 1 and line[0].isdigit() and line[1] != "compounds"
    ]


def read_molecules(path: Path, largest: int) -> Tensor:
    """Return the atoms of every molecule of an SDF file, version V2000: atomic number and x, y, z in ångström.

    The shape is ``[n, largest, 4]``, zero-padded; bonds and properties are skipped. Raises ``ValueError`` for elements
    other than H, C, N, O and F, for more than ``largest`` atoms, and for a file that ends within a molecule.
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
