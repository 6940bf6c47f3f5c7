"""Trajectories of a molecule: agreement with ASE, caching and errors."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from multitask.data.molecule import Molecule
from multitask.nn.schnet import SchNet

SMALL: dict[str, Any] = {"molecule": "H2O", "every": 2, "warm_up": 5, "examples": (6, 3, 2)}


def test_energies_and_forces_are_those_of_the_potential(tmp_path: Path) -> None:
    pytest.importorskip("ase")
    from ase import Atoms
    from ase.calculators.emt import EMT

    splits = Molecule(str(tmp_path), **SMALL).load()
    assert {name: len(split["energy"]) for name, split in splits.items()} == {"train": 6, "val": 3, "test": 2}  # type: ignore[index]
    for split in splits.values():
        inputs: Any = split["inputs"]  # type: ignore[index]
        for i, (numbers, positions) in enumerate(zip(inputs["numbers"], inputs["positions"], strict=True)):
            atoms = Atoms(numbers.numpy(), positions.double().numpy(), calculator=EMT())
            assert split["energy"][i].item() == pytest.approx(atoms.get_potential_energy(), rel=1e-4)  # type: ignore[index]
            expected = torch.from_numpy(atoms.get_forces()).float()
            torch.testing.assert_close(split["forces"][i], expected, rtol=1e-3, atol=1e-4)  # type: ignore[index]
    train, test = splits["train"], splits["test"]
    assert not torch.equal(train["inputs"]["positions"][:2], test["inputs"]["positions"])  # type: ignore[index]


def test_trajectories_are_computed_once_and_depend_on_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ase")
    first = Molecule(str(tmp_path), **SMALL).load()
    apart = Molecule(str(tmp_path / "again"), **SMALL).load()
    other = Molecule(str(tmp_path), **SMALL, trajectory_seed=1).load()
    assert len(list(tmp_path.glob("H2O_*.npz"))) == 2
    monkeypatch.setitem(sys.modules, "ase", None)
    again = Molecule(str(tmp_path), **SMALL, seed=3).load()
    for name, split in first.items():
        assert torch.equal(split["forces"], again[name]["forces"])  # type: ignore[index]
        assert torch.equal(split["forces"], apart[name]["forces"])  # type: ignore[index]
        assert not torch.equal(split["forces"], other[name]["forces"])  # type: ignore[index]


def test_unknown_molecule_is_rejected(tmp_path: Path) -> None:
    pytest.importorskip("ase")
    with pytest.raises(ValueError, match=r"data\.molecule=ethanol is unknown to ase\.build\.molecule"):
        Molecule(str(tmp_path), molecule="ethanol").load()


def test_missing_ase_is_reported_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ase", None)
    with pytest.raises(ValueError, match=r'data=molecule needs the package ase, .* -e "\.\[molecules\]"'):
        Molecule(str(tmp_path)).load()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": (4, 0, 1)}, r"data\.examples=\[4, 0, 1\] must be three counts"),
        ({"temperature": 0.0}, r"data\.temperature=0.0 must be above 0"),
        ({"every": 0}, r"data\.every=0 must be above 0"),
    ],
)
def test_invalid_numbers_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Molecule("nowhere", **options)


def test_schnet_accepts_numbers_and_positions_and_its_forces_are_equivariant() -> None:
    torch.manual_seed(0)
    net = SchNet(width=8, layers=2, cutoff=4.0, centres=10).double()
    numbers = torch.tensor([[6, 8, 1, 1]])
    positions = torch.randn(1, 4, 3, dtype=torch.float64).requires_grad_()
    features = net(numbers=numbers, positions=positions)
    torch.testing.assert_close(features, net(torch.cat([numbers[..., None].double(), positions], 2)))
    (forces,) = torch.autograd.grad(features.sum(), positions)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    turned = (positions.detach() @ turn + 5.0).requires_grad_()
    (of_turned,) = torch.autograd.grad(net(numbers=numbers, positions=turned).sum(), turned)
    torch.testing.assert_close(of_turned, forces @ turn)
    torch.testing.assert_close(forces.sum(1), torch.zeros(1, 3, dtype=torch.float64))
