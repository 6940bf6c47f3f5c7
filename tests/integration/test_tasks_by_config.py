"""Tasks, trunks and data sets chosen on the command line, through the script."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.integration.script_runner import Scripts
from tests.integration.small import metrics_on_test
from tests.unit.task.test_kinds import arrays

pytestmark = pytest.mark.slow

TRUNKS = ("hard_sharing", "mmoe", "cgc", "ple", "cross_stitch", "mtan", "resnet18", "transformer")
SHORT = ("trainer.limit_train_batches=2", "trainer.max_epochs=1", "data.eval_batch_size=500")


@pytest.mark.smoke("classification_l2-expected0-upgrad")
@pytest.mark.parametrize("weighting", ["weighted_sum", "upgrad"])
@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("classification_l2", {("left", "accuracy"), ("l2", "loss")}),
        ("classification_reconstruction", {("left", "accuracy"), ("reconstruction", "mse")}),
        ("mnist_and_fashion", {("digits", "accuracy"), ("clothes", "accuracy")}),
    ],
)
def test_experiments_run(
    scripts: Scripts, experiment: str, weighting: str, expected: set[tuple[str, str]]
) -> None:
    found = metrics_on_test(
        scripts.train(f"experiment={experiment}", f"weighting={weighting}", *SHORT).folder
    )
    assert expected <= set(found)
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.smoke("mmoe")
@pytest.mark.parametrize("trunk", TRUNKS)
def test_trunks_train_with_a_jacobian_method(scripts: Scripts, trunk: str) -> None:
    small = {"resnet18": ["trunk.width=8"], "mtan": ["trunk.channels=[4,8]"]}.get(trunk, [])
    ran = scripts.train("weighting=upgrad", f"trunk={trunk}", *small, *SHORT)
    assert {("left", "accuracy"), ("right", "accuracy")} <= set(metrics_on_test(ran.folder))


@pytest.mark.smoke("trunk0")
@pytest.mark.parametrize(
    "trunk",
    [
        ("trunk=segnet", "trunk.channels=[8,8]", "trunk.depths=[1,1]", "trunk.norm=group"),
        ("trunk=mtan_dense", "trunk.channels=[8,8]"),
    ],
)
def test_dense_tasks_train_on_dense_trunks(scripts: Scripts, tmp_path: Path, trunk: tuple[str, ...]) -> None:
    np.savez(tmp_path / "file.npz", **arrays())
    tasks = "task=[kinds/segmentation,kinds/dense,kinds/reconstruction]"
    ran = scripts.train(
        "data=npz", f"data.path={tmp_path}/file.npz", tasks, "weighting=upgrad", *trunk, *SHORT
    )
    assert {("segmentation", "accuracy"), ("dense", "mae"), ("reconstruction", "mse")} <= set(
        metrics_on_test(ran.folder)
    )


@pytest.mark.smoke
def test_task_check_prints_before_training_and_does_not_change_the_run(
    scripts: Scripts, tmp_path: Path
) -> None:
    np.savez(tmp_path / "file.npz", **arrays())
    common = [
        "data=npz",
        f"data.path={tmp_path}/file.npz",
        "task=[kinds/binary,kinds/labels,kinds/vector]",
        "trunk=mlp",
    ]
    checked = scripts.train(*common, *SHORT, "task_check=true", env={"COLUMNS": "200"})
    assert checked.out.index("tasks at initialization") < checked.out.index("test set")
    assert metrics_on_test(checked.folder) == metrics_on_test(scripts.train(*common, *SHORT).folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tasks.left.head.out_features=5", "the target 'left' has the class"),
        ("tasks.left.metrics.accuracy.num_classes=3", "tasks.left.metrics.accuracy cannot take"),
        (
            "+tasks.left.metrics.accuracy.top_k=10 task_check=true",
            "whether the predictions are right or wrong",
        ),
    ],
)
def test_invalid_config_is_rejected_and_writes_no_folder(scripts: Scripts, change: str, message: str) -> None:
    ran = scripts.run("logger=csv", *change.split())
    assert ran.code == 1
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in ran.err
    assert not list(scripts.logs.glob("*/runs/*"))


def test_penalty_on_unknown_parameters_is_rejected(scripts: Scripts) -> None:
    ran = scripts.run("logger=csv", "experiment=classification_l2", "tasks.l2.parameters=[trunk.9.*]")
    assert ran.code == 1
    assert "tasks.l2.parameters: no name matches 'trunk.9.*'" in ran.err
