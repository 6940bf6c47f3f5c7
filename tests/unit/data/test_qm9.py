"""QM9: small files in the same format."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from multitask.data.qm9 import QM9, read_molecules

METHANE = [
    ("C", 0.0, 0.0, 0.0),
    *(("H", x, y, z) for x, y, z in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))),
]
WATER = [("O", 0.0, 0.0, 0.1), ("H", 0.0, 0.75, -0.5), ("H", 0.0, -0.75, -0.5)]
COLUMNS = [
    "mol_id",
    "A",
    "B",
    "C",
    "mu",
    "alpha",
    "homo",
    "lumo",
    "gap",
    "r2",
    "zpve",
    "u0",
    "u298",
    "h298",
    "g298",
    "cv",
    "u0_atom",
    "u298_atom",
    "h298_atom",
    "g298_atom",
]


def molecule(name: str, atoms: list, bonds: int) -> str:
    lines = [name, "  some program", "", f"{len(atoms):3d}{bonds:3d}  0  0  0  0  0  0  0  0999 V2000"]
    lines += [
        f"{x:10.4f}{y:10.4f}{z:10.4f} {e:<3} 0  0  0  0  0  0  0  0  0  0  0  0" for e, x, y, z in atoms
    ]
    lines += [f"  1{i + 2:3d}  1  0  0  0  0" for i in range(bonds)]
    return "\n".join([*lines, "M  END", "$$$$", ""])


def write_qm9(root: Path, count: int = 20, uncharacterized: tuple[int, ...] = (3, 11)) -> None:
    root.mkdir(parents=True, exist_ok=True)
    kinds = [molecule(f"gdb_{i + 1}", WATER if i % 2 else METHANE, 2 if i % 2 else 4) for i in range(count)]
    (root / "gdb9.sdf").write_text("".join(kinds))
    with (root / "gdb9.sdf.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(
            [[f"gdb_{i + 1}", *(i + k / 100 for k in range(len(COLUMNS) - 1))] for i in range(count)]
        )
    body = [f"{n:6d}  CC  C1C  0.5" for n in uncharacterized]
    (root / "uncharacterized.txt").write_text(
        "\n".join([*["header 1"] * 9, *body, "", f"{len(uncharacterized)} compounds"]) + "\n"
    )


@pytest.mark.parametrize("place", [".", "raw"])
def test_qm9_molecules_and_units(tmp_path: Path, place: str):
    write_qm9(tmp_path / place)
    module = QM9(str(tmp_path), targets=["mu", "homo", "u0"], split=(0.5, 0.25, 0.25), batch_size=4)
    module.setup("fit")
    whole = {key: torch.cat([part[key] for part in module.splits.values()]) for key in module.splits["train"]}
    assert whole["inputs"].shape == (18, 29, 4)
    number = (whole["mu"] - 0.03).round().long()
    assert sorted(number.tolist()) == [i for i in range(20) if i + 1 not in (3, 11)]
    methane = torch.tensor([[6.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
    for atoms, which in zip(whole["inputs"], number.tolist(), strict=True):
        assert (atoms[:, 0] > 0).sum() == (3 if which % 2 else 5)
        assert torch.equal(atoms[:5], methane) is (which % 2 == 0)
    # Hartree and kcal/mol to eV.
    torch.testing.assert_close(whole["homo"], (number.double() + 0.05) * 27.2113862, rtol=1e-6, atol=0)
    torch.testing.assert_close(whole["u0"], (number.double() + 0.15) * 0.0433641, rtol=1e-5, atol=0)


def test_missing_and_invalid_qm9_is_rejected(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*gdb9\.sdf, gdb9\.sdf\.csv"):
        QM9(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(ValueError, match="gap is not a property"):
        QM9(str(tmp_path), targets=["gap"]).setup("fit")
    write_qm9(tmp_path)
    (tmp_path / "gdb9.sdf").write_text(molecule("gdb_1", WATER, 2))
    with pytest.raises(ValueError, match="1 molecules"):
        QM9(str(tmp_path)).setup("fit")


def _iron(text: str) -> str:
    return text.replace(" O  ", " Fe ")


def _cut(text: str) -> str:
    return text[: text.index("M  END")]


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [(_iron, "an atom Fe"), (_cut, "ends within molecule 1"), (lambda text: text, "5 atoms, more than 4")],
)
def test_invalid_molecules_are_rejected(tmp_path: Path, corrupt: Callable[[str], str], message: str):
    file = tmp_path / "some.sdf"
    good = molecule("gdb_1", WATER, 2)
    file.write_text(good + (corrupt(good) if message[0] != "5" else molecule("gdb_2", METHANE, 4)))
    with pytest.raises(ValueError, match=message):
        read_molecules(file, largest=4)
