"""Best weights and schedules per task, through the scripts."""

import pytest
import torch

from tests.integration.script_runner import Scripts
from tests.integration.small import rows

pytestmark = pytest.mark.slow


@pytest.mark.smoke
def test_best_weights_per_task_survive_a_resume_and_are_evaluated(scripts: Scripts) -> None:
    keys = [
        *("experiment=abalone", "callbacks=[per_task,schedule]", "callbacks.per_task.metrics={sex:accuracy}"),
        *("callbacks.schedule.tasks={rings:{from_epoch:1}}", "logger=csv", "trainer.limit_train_batches=4"),
        "weighting=upgrad",
    ]
    first = scripts.run(*keys, "trainer.max_epochs=2")
    assert first.code == 0, first.err
    rest = scripts.run(*keys, "trainer.max_epochs=3", f"ckpt_path={first.folder}/checkpoints/last.ckpt")
    assert rest.code == 0, rest.err
    labelled = [
        row["train/labelled/rings"]
        for row in rows(rest.folder / "metrics.csv")
        if row["train/labelled/rings"]
    ]
    assert [float(value) for value in labelled] == [0, 1, 1, 1]
    best = rest.folder / "checkpoints" / "best_sex.ckpt"
    validated = [row for row in rows(rest.folder / "metrics.csv") if row["val/sex/accuracy"]]
    values = [float(row["val/sex/accuracy"]) for row in validated]
    assert torch.load(best, weights_only=True)["global_step"] == 4 * (1 + values.index(max(values)))
    measured = scripts.run(f"ckpt_path={best}", "evaluation.splits=[val]", script="eval")
    assert measured.code == 0, measured.err
    (found,) = (row for row in rows(measured.folder / "results.csv") if row["metric"] == "accuracy")
    assert float(found["value"]) == pytest.approx(max(values), rel=1e-6)
