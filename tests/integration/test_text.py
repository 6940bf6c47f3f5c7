"""Texts through the scripts: a sweep over weightings and seeds, its comparison, and predictions."""

from pathlib import Path

import numpy as np
import pytest

from multitask.evaluation.compare import load
from multitask.evaluation.comparison import Settings, compare_records
from tests.integration.script_runner import Scripts
from tests.integration.small import rows

pytestmark = pytest.mark.slow


@pytest.mark.smoke
def test_text_is_swept_compared_and_predicted(scripts: Scripts, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    ran = scripts.run(
        *("-m", "experiment=text", "data.examples=[64,24,24]", "weighting=weighted_sum,upgrad", "seed=0,1"),
        *("trainer.max_epochs=1", "data.eval_batch_size=8", "logger=csv", "sweep=texts"),
        "task_check=true",
    )
    assert ran.code == 0, ran.err
    sweep = scripts.logs / "text" / "sweeps" / "texts"
    jobs = sorted(path.parent for path in sweep.glob("*/results.csv"))
    assert len(jobs) == 4
    found_metrics = {(row["task"], row["metric"]) for row in rows(jobs[0] / "results.csv")}
    assert {("topic", "accuracy"), ("tags", "accuracy"), ("score", "mae")} <= found_metrics
    (comparison,) = compare_records(load(str(sweep)), Settings())
    assert {entry.label for entry in comparison.entries} == {"weighted_sum", "upgrad"}
    predicted = scripts.run(
        f"ckpt_path={jobs[0]}/checkpoints/best.ckpt",
        f"output={tmp_path}/found.npz",
        "split=test",
        script="predict",
    )
    assert predicted.code == 0, predicted.err
    with np.load(tmp_path / "found.npz") as found:
        assert found["topic"].shape == (24, 4)
        assert found["tags"].shape[:2] == (24, 6)
        # Batches of eight sentences, each padded to its longest.
        assert np.isnan(found["tags"]).any()
        assert not np.isnan(found["tags"][:, :, :6]).any()
