"""The experiment of every data set, for two steps each, through the script."""

import csv
import json
import math
import re
from pathlib import Path

import pytest

from tests.forks import ROOT
from tests.integration.script_runner import Scripts
from tests.unit.data.test_celeba import write_celeba
from tests.unit.data.test_mtan import write_mtan
from tests.unit.data.test_office31 import write_office
from tests.unit.data.test_overlaid import write_mnist
from tests.unit.data.test_qm9 import write_qm9

EMBEDDED = ("abalone", "fashion_mnist", "quadratic", "rooms", "toy")
ON_DISK = ("celeba", "cityscapes", "multi_mnist_full", "nyuv2", "office31", "qm9")
QUICK = (
    "logger=csv",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
)


def sweep(scripts: Scripts, folder: Path, *overrides: str) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Run a sweep in one process; return each run's rows by experiment and method."""
    ran = scripts.start("-m", *QUICK, f"hydra.sweep.dir={folder}", *overrides).wait(550)
    assert ran.code == 0, ran.err[-3000:]
    runs = {}
    for file in folder.glob("*/results.csv"):
        assert json.loads((file.parent / "run.json").read_text())["status"] == "completed"
        with file.open() as opened:
            rows = list(csv.DictReader(opened))
        runs[rows[0]["experiment"], rows[0]["method"]] = rows
    return runs


@pytest.mark.smoke("upgrad")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["upgrad", "weighted_sum"])
def test_embedded_and_generated_data_sets_run(scripts: Scripts, tmp_path: Path, method: str):
    grid = (f"experiment={','.join(EMBEDDED)}", f"weighting={method}")
    runs = sweep(scripts, tmp_path / "sweep", *grid)
    assert set(runs) == {(experiment, method) for experiment in EMBEDDED}
    assert all(math.isfinite(float(row["value"])) for rows in runs.values() for row in rows)
    rooms = runs["rooms", method]
    combined = {"combined"} if method == "weighted_sum" else set()
    assert {row["task"] for row in rooms} == {"segmentation", "depth", "normals"} | combined
    better = {row["metric"]: row["higher_is_better"] for row in rooms}
    assert better["miou"] == better["pixel_accuracy"] == better["within_11"] == "True"
    assert better["absolute_error"] == better["relative_error"] == better["median_angle"] == "False"
    assert len(list(tmp_path.glob("sweep/*/trajectory.png"))) == 2


@pytest.mark.slow
def test_data_sets_on_disk_run(scripts: Scripts, tmp_path: Path):
    data = tmp_path / "data"
    write_mtan(data / "nyuv2", normals=True, size=(24, 32))
    write_mtan(data / "cityscapes", normals=False, label="label_7", size=(24, 32))
    write_mnist(data / "MNIST" / "raw")
    write_celeba(data / "celeba", tree=True, attributes=celeba_attributes())
    write_office(data / "office31")
    write_qm9(data / "qm9")
    runs = sweep(scripts, tmp_path / "sweep", f"experiment={','.join(ON_DISK)}", f"paths.data={data}")
    assert set(runs) == {(experiment, "weighted_sum") for experiment in ON_DISK}
    for (experiment, _), rows in runs.items():
        assert {row["split"] for row in rows} == {"val", "test"}, experiment
    assert len({row["task"] for row in runs["celeba", "weighted_sum"]} - {"combined"}) == 40


def celeba_attributes() -> list[str]:
    """Return the attributes named by the task files."""
    files = sorted((ROOT / "configs" / "task" / "celeba").glob("[a-z]*.yaml"))
    return [re.search(r"^target: (\w+)$", file.read_text(), re.MULTILINE).group(1) for file in files]


@pytest.mark.slow
def test_missing_data_set_is_reported_in_one_sentence(scripts: Scripts, tmp_path: Path):
    ran = scripts.run("experiment=nyuv2", f"data.path={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}")
    assert ran.code != 0
    answer = (ran.out + ran.err).strip().splitlines()[-1]
    assert answer.startswith(f"error: data.path={tmp_path} has no folder train; it must hold")
    assert "Traceback" not in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_trajectory_without_a_toy_is_rejected_before_the_run(scripts: Scripts, tmp_path: Path):
    ran = scripts.run("experiment=abalone", "callbacks=trajectory", f"hydra.run.dir={tmp_path / 'run'}")
    assert ran.code != 0
    assert ran.err.strip().splitlines()[-1].endswith("set trunk=point.")
    assert "Traceback" not in ran.err
    assert not (tmp_path / "run").exists()
