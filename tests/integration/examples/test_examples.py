"""The unmodified examples run, and all their gradients match the reference."""

from pathlib import Path

import pytest
import torch
from torchjd.aggregation import ConFIG

from examples import force_field, own_lightning_module, pinn, plain_loop
from tests.forks import ROOT
from tests.integration.examples.conftest import Reference

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short_and_document_their_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert lines[0].endswith(f': ``python examples/{path.name}``."""')


def test_plain_loop(reference: Reference) -> None:
    losses = plain_loop.main(steps=60)
    assert reference.steps == 60
    assert (losses < torch.tensor([1.0, 1.0])).all()


def test_own_lightning_module(reference: Reference, tmp_path: Path) -> None:
    logged = own_lightning_module.main(
        epochs=3, default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False
    )
    assert reference.steps == 3 * 4
    assert logged.keys() == {"val/loss/reconstruction", "val/loss/class", "val/loss"}


def test_pinn(reference: Reference) -> None:
    reference.aggregate = ConFIG()
    error = pinn.main(steps=300)
    assert reference.steps == 300
    assert error < 0.05


def test_force_field(reference: Reference) -> None:
    energies, forces = force_field.main(steps=100)
    assert reference.steps == 100
    assert energies < 1.0
    assert forces < 0.2
