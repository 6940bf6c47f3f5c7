"""Recorded metrics of splits without labels, runs without validation and models that differentiate."""

from pathlib import Path

import numpy as np
import pytest

from tests.integration.script_runner import Ran, Scripts
from tests.integration.small import CONFIGS, metrics, rows

pytestmark = pytest.mark.slow
TASKS = "task=[kinds/scalar,kinds/vector,kinds/weighted_classes]"


def save(folder: Path, unlabelled: str = "val", offset: float = 0.0) -> str:
    """Write 120 examples; ``vector`` and ``classes`` have no labels in one split."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 6)).astype(np.float32)
    split = np.array(["train"] * 80 + ["val"] * 20 + ["test"] * 20)
    classes, vector = inputs[:, :3].argmax(1), -2 * inputs
    classes[split == unlabelled], vector[split == unlabelled] = -100, np.nan
    scalar = (inputs**2).sum(1) + offset
    np.savez(folder / "file.npz", inputs=inputs, scalar=scalar, vector=vector, classes=classes, split=split)
    return str(folder / "file.npz")


def shifted(folder: Path, offset: float) -> str:
    """Write a scalar and a vector target, shifted by a constant without rounding."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 6)).astype(np.float32)
    scalar, vector = inputs[:, 0] * 0.1 + inputs[:, 1] ** 2, inputs[:, :3] * [3.0, 0.5, 20.0]
    vector[::7, 1] = np.nan
    split = np.array(["train"] * 80 + ["val"] * 20 + ["test"] * 20)
    # Multiples of 2^-20, so that the shifted numbers are exact.
    scalar, vector = (np.round(v.astype(np.float64) * 2**20) / 2**20 for v in (scalar, vector))
    folder.mkdir(exist_ok=True)
    np.savez(folder / "file.npz", inputs=inputs, scalar=scalar + offset, vector=vector + offset, split=split)
    return str(folder / "file.npz")


@pytest.mark.parametrize("offset", [1e4, -3e5, 1e6])
def test_metrics_of_a_shifted_target_are_the_same(offset: float, scripts: Scripts, tmp_path: Path) -> None:
    arguments = (
        "task=[kinds/scalar,kinds/vector]",
        "trunk=mlp_small",
        "tasks.vector.head.out_features=3",
        "+tasks.vector.metrics.r2._target_=multitask.metrics.R2",
        "+tasks.vector.metrics.explained._target_=torchmetrics.ExplainedVariance",
        "trainer.max_epochs=2",
    )
    found = []
    for i, by in enumerate((0.0, offset)):
        ran = run(scripts, shifted(tmp_path / str(i), by), *arguments, f"hydra.run.dir={tmp_path}/run{i}")
        assert ran.code == 0, ran.err
        found.append(metrics(ran.folder))
    assert found[0].keys() == found[1].keys()
    assert {("test", "scalar", "r2"), ("test", "vector", "explained")} <= found[0].keys()
    for key, value in found[0].items():
        assert found[1][key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize(("offset", "fits"), [(0.0, True), (1e5, False)])
def test_precision_that_rounds_targets_before_centering_is_rejected(
    offset: float, fits: bool, scripts: Scripts, tmp_path: Path
) -> None:
    ran = run(
        scripts,
        shifted(tmp_path / "data", offset),
        "task=[kinds/scalar,kinds/vector]",
        "tasks.vector.head.out_features=3",
        "trunk=mlp_small",
        "trainer.precision=bf16-true",
    )
    assert (ran.code == 0) is fits, ran.err
    assert fits or "set trainer.precision=bf16-mixed" in ran.err


def run(scripts: Scripts, path: str, *arguments: str) -> Ran:
    return scripts.run(
        f"--config-dir={CONFIGS}",
        f"data.path={path}",
        "data=npz",
        "data.split=split",
        "data.batch_size=16",
        "tasks.vector.head.out_features=6",
        "logger=csv",
        "trainer.max_epochs=3",
        *arguments,
    )


def measured(ran: Ran) -> set[tuple[str, str, str]]:
    assert ran.code == 0, ran.err
    return set(metrics(ran.folder))


@pytest.mark.parametrize("weighting", ["weighted_sum", "upgrad"])
def test_split_without_labels_of_a_task_has_no_metrics_of_it(
    weighting: str, scripts: Scripts, tmp_path: Path
) -> None:
    ran = run(
        scripts,
        save(tmp_path),
        TASKS,
        "trunk=mlp_small",
        f"weighting={weighting}",
        "callbacks=early_stopping",
    )
    found = measured(ran)
    assert {(task, metric) for split, task, metric in found if split == "val"} == {
        ("scalar", "loss"),
        ("scalar", "mae"),
        ("scalar", "r2"),
    }
    assert {("test", "vector", "mae"), ("test", "classes", "accuracy")} <= found
    curves = [row for row in rows(ran.folder / "metrics.csv") if row["val/loss"]]
    assert len(curves) == 3
    assert all(row["val/loss"] == row["val/loss/scalar"] for row in curves)
    assert not any(
        row.get(f"val/{key}") for row in curves for key in ("loss/vector", "vector/mae", "classes/accuracy")
    )
    assert ran.record["selection"] == "min val/loss"
    assert ran.record["selected_value"] == min(float(row["val/loss"]) for row in curves)
    assert "selection_note" not in ran.record


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("trainer.limit_val_batches=0", "the run had no validation"),
        ("trainer.check_val_every_n_epoch=9", "the run had no validation"),
        ("callbacks.checkpoint=null", "no callback saves the best"),
    ],
)
def test_run_that_selects_no_weights_warns_and_records_it(
    override: str, why: str, scripts: Scripts, tmp_path: Path
) -> None:
    ran = run(scripts, save(tmp_path, "none"), TASKS, "trunk=mlp_small", override)
    measured(ran)
    note = f"selection.metric=val/loss selected no checkpoint, since {why}; the last weights are evaluated."
    assert f"warning: {note}" in ran.err.splitlines()
    record = ran.record
    assert (record["status"], record["selection"], record["selected_value"]) == ("completed", "last", None)
    assert (record["selection_note"], record["epoch"]) == (note, 3)
    assert {row["selection"] for row in rows(ran.folder / "results.csv")} == {"last"}


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        (("selection.metric=val/vector/mae",), "set selection.metric=null to keep the last weights."),
        (
            ("scheduler=plateau", "scheduler.monitor=val/loss/classes", "selection.metric=null"),
            "choose a scheduler that watches nothing, such as scheduler=none.",
        ),
        (("only=vector",), "set selection.metric=null to keep the last weights."),
    ],
)
def test_monitored_metric_that_never_has_a_value_is_rejected(
    arguments: tuple[str, ...], way_out: str, scripts: Scripts, tmp_path: Path
) -> None:
    ran = run(scripts, save(tmp_path), TASKS, "trunk=mlp_small", *arguments)
    assert ran.code == 1
    assert "never has a value, since the validation split has no label for vector" in ran.err
    assert ran.err.strip().endswith(f"name another metric, or {way_out}")
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("weighting", ["weighted_sum", "upgrad"])
def test_model_that_differentiates_is_validated_and_tested(
    weighting: str, scripts: Scripts, tmp_path: Path
) -> None:
    tasks = "task=[kinds/scalar,kinds/vector]"
    ran = run(scripts, save(tmp_path, "none"), tasks, "trunk=forces", f"weighting={weighting}")
    assert {(split, "vector", "mae") for split in ("val", "test")} <= measured(ran)
    again = scripts.run(f"ckpt_path={ran.folder / 'checkpoints' / 'best.ckpt'}", script="eval")
    assert again.code == 0, again.err
    values = [metrics(each.folder) for each in (ran, again)]
    assert values[0] == values[1]


def test_metrics_of_a_target_far_from_zero_are_accurate(scripts: Scripts, tmp_path: Path) -> None:
    found = []
    for offset in (0.0, -1e5):
        ran = run(scripts, save(tmp_path, "none", offset), TASKS, "trunk=mlp_small")
        measured(ran)
        found.append(
            {key: value for key, value in metrics(ran.folder).items() if key[:2] == ("test", "scalar")}
        )
    assert found[0]["test", "scalar", "r2"] < 0.9
    assert found[1] == pytest.approx(found[0], rel=0.01, abs=0.005)


def test_undefined_metric_on_one_label_keeps_the_others(scripts: Scripts, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(120, 6))
    split = np.array(["train"] * 80 + ["val"] * 20 + ["test"] * 20)
    vector = inputs[:, :1].copy()
    vector[101:] = np.nan
    np.savez(tmp_path / "file.npz", inputs=inputs, scalar=inputs[:, 1], vector=vector, split=split)
    ran = run(
        scripts,
        str(tmp_path / "file.npz"),
        "task=[kinds/scalar,kinds/vector]",
        "trunk=mlp_small",
        "tasks.vector.head.out_features=1",
        "+tasks.vector.metrics.r2._target_=torchmetrics.R2Score",
    )
    found = measured(ran)
    of_test = {(task, metric) for split, task, metric in found if split == "test"}
    assert of_test - {("combined", "loss")} == {
        ("scalar", "loss"),
        ("scalar", "mae"),
        ("scalar", "r2"),
        ("vector", "loss"),
        ("vector", "mae"),
    }
    assert ("val", "vector", "r2") in found
    assert (ran.folder / "run.json").is_file()
