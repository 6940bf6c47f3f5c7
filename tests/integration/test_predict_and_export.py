"""Predictions of a checkpoint and of its exports reproduce the metrics of the run."""

import csv
import subprocess
import sys
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.integration.script_runner import Ran, Scripts
from tests.integration.small import metrics_on_test

pytestmark = pytest.mark.slow

TASKS = ["task=[kinds/scalar,kinds/vector,kinds/classes]", "tasks.vector.head.out_features=2"]
SMALL = ["logger=csv", "data=npz", "trunk=mlp_small", "trainer.max_epochs=2", "data.batch_size=32", *TASKS]


def read(path: Path) -> tuple[list[int], dict[str, np.ndarray]]:
    """Return the ids and the columns of a table of predictions."""
    with path.open() as file:
        header, *rows = csv.reader(file)
    values = np.array(rows, dtype=np.float64).T
    return values[0].astype(int).tolist(), dict(zip(header[1:], values[1:], strict=True))


class Trained:
    """A run on targets far from zero, and scripts on its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.scripts = Scripts(folder)
        generator = np.random.default_rng(0)
        inputs = generator.normal(size=(150, 6)).astype(np.float32)
        self.arrays = {
            "inputs": inputs,
            "scalar": inputs[:, 0] + 3e5,
            "vector": inputs[:, :2] * (1.0, 10.0) + (5.0, -50.0),
            "classes": inputs[:, :3].argmax(1),
        }
        np.savez(folder / "arrays.npz", **self.arrays)
        self.ran = self.run("train", f"data.path={folder}/arrays.npz", "weighting=upgrad", *SMALL)
        self.checkpoint = f"ckpt_path={self.ran.folder}/checkpoints/best.ckpt"

    def any(self, script: str, *arguments: str) -> Ran:
        return self.scripts.run(*arguments, script=script)

    def run(self, script: str, *arguments: str) -> Ran:
        ran = self.any(script, *arguments)
        assert ran.code == 0, ran.err
        return ran


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def trained(once: Trained, scripts: Scripts) -> Trained:
    """The run, with a folder for the scripts of one test."""
    own = copy(once)
    own.scripts = scripts
    return own


@pytest.mark.smoke
def test_predictions_reproduce_the_metrics(trained: Trained, tmp_path: Path) -> None:
    ran = trained.run("predict", trained.checkpoint)
    assert ran.folder.name == "predictions.csv"
    rows, found = read(ran.folder)
    assert list(found) == ["scalar", "vector/0", "vector/1", "classes/0", "classes/1", "classes/2"]
    # The ids are rows of the file, whose labels reproduce the metrics of the run.
    labels = {name: values[rows] for name, values in trained.arrays.items()}
    vector = np.stack([found["vector/0"], found["vector/1"]], 1)
    scores = np.stack([found[f"classes/{i}"] for i in range(3)], 1)
    expected = metrics_on_test(trained.ran.folder)
    assert len(rows) == 30
    assert np.abs(found["scalar"] - labels["scalar"].astype(np.float32)).mean() == pytest.approx(
        expected["scalar", "mae"], rel=1e-6
    )
    assert np.abs(vector - labels["vector"]).mean() == pytest.approx(expected["vector", "mae"], rel=1e-5)
    assert (scores.argmax(1) == labels["classes"]).mean() == pytest.approx(expected["classes", "accuracy"])
    # The same predictions as arrays, in another folder.
    trained.run("predict", trained.checkpoint, f"output={tmp_path}/there/a b.npz")
    arrays = np.load(tmp_path / "there" / "a b.npz")
    assert arrays["id"].tolist() == rows
    np.testing.assert_array_equal(arrays["scalar"][:, 0], found["scalar"])
    assert arrays["classes"].shape == (30, 3)
    # The same predictions for a file without labels.
    np.savez(tmp_path / "new.npz", inputs=trained.arrays["inputs"][rows])
    new = [f"data.path={tmp_path}/new.npz", "data.targets=[]", "data.split=[0,0,1]", "data.eval_batch_size=7"]
    again, other = read(trained.run("predict", trained.checkpoint, *new).folder)
    assert sorted(again) == list(range(30))
    for name, values in found.items():
        np.testing.assert_allclose(other[name], values[again], rtol=1e-5, atol=1e-5)


def test_ids_can_come_from_a_key_of_the_batch(trained: Trained, tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", **trained.arrays, number=1000 + np.arange(150))
    given = [f"data.path={tmp_path}/named.npz", "data.targets=[number]", "ids=number", "split=val"]
    rows, _ = read(trained.run("predict", trained.checkpoint, *given).folder)
    assert len(set(rows)) == len(rows) == 15
    assert min(rows) >= 1000


@pytest.mark.parametrize(
    ("script", "overrides", "message"),
    [
        ("predict", ["split=tset"], "split=tset is not one of train, val, test; did you mean 'test'?"),
        (
            "predict",
            ["split=val", "data.split=[0.5,0,0.5]"],
            "split=val is not in the data, which has train, test.",
        ),
        (
            "predict",
            ["ids=name"],
            "ids=name is not a key of a batch, which has inputs, classes, scalar, vector.",
        ),
        ("predict", ["output=here.txt"], "output=here.txt ends neither with .csv nor with .npz"),
        ("predict", ["trunk.widths=[8]"], "the checkpoint's weights do not match the model"),
        ("export", ["format=tflite"], "format=tflite is not one of torch, onnx"),
    ],
)
def test_invalid_config_is_rejected(
    trained: Trained, script: str, overrides: list[str], message: str
) -> None:
    ran = trained.any(script, trained.checkpoint, *overrides)
    ran.assert_error(message)
    assert not [*trained.scripts.logs.glob("*/predictions/*"), *trained.scripts.logs.glob("*/exports/*")]


@pytest.mark.smoke
def test_exported_model_predicts_the_same_without_this_package(trained: Trained, tmp_path: Path) -> None:
    ran = trained.run("export", trained.checkpoint)
    assert ran.folder.name == "model.pt2"
    rows, found = read(trained.run("predict", trained.checkpoint).folder)
    torch.save(torch.from_numpy(trained.arrays["inputs"][rows]), tmp_path / "inputs.pt")
    code = (
        "import sys, torch; model = torch.export.load(sys.argv[1]).module();"
        "torch.save(model(torch.load(sys.argv[2])), sys.argv[3]); assert 'multitask' not in sys.modules"
    )
    files = [str(ran.folder), str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    outputs = torch.load(tmp_path / "outputs.pt")
    scalar, classes = outputs["scalar"].detach().numpy(), outputs["classes"].detach().numpy()
    np.testing.assert_allclose(scalar[:, 0], found["scalar"], rtol=1e-7)
    np.testing.assert_allclose(classes[:, 2], found["classes/2"], rtol=1e-4, atol=1e-6)


def test_exported_onnx_model_predicts_the_same(trained: Trained, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    trained.run("export", trained.checkpoint, "format=onnx", f"output={path}")
    rows, found = read(trained.run("predict", trained.checkpoint).folder)
    scalar, _, classes = onnxruntime.InferenceSession(path).run(
        None, {"inputs": trained.arrays["inputs"][rows]}
    )
    np.testing.assert_allclose(scalar[:, 0], found["scalar"], rtol=1e-7)
    np.testing.assert_allclose(classes[:, 2], found["classes/2"], rtol=1e-4, atol=1e-5)


def test_dense_predictions_need_an_array_file(scripts: Scripts, tmp_path: Path) -> None:
    small = ["experiment=rooms", "trunk=unet_small", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    ran = scripts.run(*small, "logger=csv", "data.eval_batch_size=16")
    assert ran.code == 0, ran.err
    checkpoint = f"ckpt_path={ran.folder}/checkpoints/best.ckpt"
    refused = scripts.run(checkpoint, script="predict")
    assert "cannot hold the predictions of 'segmentation'" in refused.err
    assert "name a file that ends with .npz." in refused.err
    assert scripts.run(checkpoint, f"output={tmp_path}/p.npz", script="predict").code == 0
    assert np.load(tmp_path / "p.npz")["depth"].ndim == 4
    assert scripts.run(checkpoint, script="export").code == 0


def test_derivatives_are_predicted_but_not_exported(scripts: Scripts) -> None:
    small = [
        "data=muller_brown",
        "task=[kinds/energy,kinds/forces]",
        "trunk=mlp_smooth",
        "trainer.max_epochs=1",
    ]
    ran = scripts.run(*small, "logger=csv")
    assert ran.code == 0, ran.err
    checkpoint = f"ckpt_path={ran.folder}/checkpoints/best.ckpt"
    predicted = scripts.run(checkpoint, script="predict")
    assert predicted.code == 0, predicted.err
    assert list(read(predicted.folder)[1]) == ["energy", "forces/0", "forces/1"]
    exported = scripts.run(checkpoint, script="export")
    assert exported.code == 1
    assert "a task needs derivatives" in exported.err


def test_own_model_predicts_by_its_predict_step(scripts: Scripts, arrays: Path) -> None:
    def checkpoint(name: str) -> str:
        own = [
            f"model._target_=tests.integration.own.{name}",
            "data=npz",
            f"data.path={arrays}",
            "data.targets=[a]",
        ]
        ran = scripts.run(*own, "logger=csv", "trainer.max_epochs=1", "data.batch_size=32")
        assert ran.code == 0, ran.err
        return f"ckpt_path={ran.folder}/checkpoints/best.ckpt"

    predicted = scripts.run(checkpoint("Predicting"), "split=val", script="predict")
    assert predicted.code == 0, predicted.err
    rows, found = read(predicted.folder)
    assert len(set(rows)) == 20
    assert ((found["positive"] >= 0) & (found["positive"] <= 1)).all()
    silent = checkpoint("Autoencoder")
    refused = scripts.run(silent, script="predict")
    assert "Autoencoder defines no predict_step; let it return predictions by name." in refused.err
    exported = scripts.run(silent, script="export")
    assert "Autoencoder has no trunk and heads" in exported.err
