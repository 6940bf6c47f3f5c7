"""Energy and forces of a molecule, through the script."""

import csv
from pathlib import Path

import pytest

from tests.integration.script_runner import Scripts

SMALL = ("data.examples=[40,10,10]", "data.every=2", "data.warm_up=5", "trainer.max_epochs=2", "logger=csv")


@pytest.mark.smoke
@pytest.mark.slow
def test_energy_and_forces_are_measured_in_their_units(scripts: Scripts, tmp_path: Path) -> None:
    pytest.importorskip("ase")
    ran = scripts.run("experiment=molecule_forces", *SMALL, "weighting=upgrad", f"paths.data={tmp_path}")
    assert ran.code == 0, ran.err
    with (ran.folder / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert {(row["task"], row["metric"]) for row in rows if row["task"] != "combined"} == {
        (task, metric) for task in ("energy", "forces") for metric in ("loss", "mae")
    }
    assert ran.record["resume"] == "exact"
    assert all(float(row["value"]) < 2 for row in rows if row["metric"] == "mae")  # eV, and eV/Å
    assert len(list((tmp_path / "molecule").glob("CH3CH2OH_*.npz"))) == 1
