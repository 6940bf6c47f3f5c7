from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multitask.lightning.curves import MetricsCsv, carry_over
from tests.integration.small import rows
from tests.unit.in_process import trained

ROW = st.dictionaries(
    st.sampled_from(["train/loss/a", "val/loss", "epoch", "a,b", 'x"y']), st.integers(0, 99)
)


@given(logged=st.lists(ROW, min_size=1, max_size=8), restart=st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_every_row_is_written_for_any_keys_and_after_a_restart(
    tmp_path_factory: pytest.TempPathFactory, logged: list[dict[str, int]], restart: int
) -> None:
    folder = tmp_path_factory.mktemp("curves")
    logger = MetricsCsv(folder)
    for step, metrics in enumerate(logged):
        if step == restart:
            logger = MetricsCsv(folder)
        logger.log_metrics(metrics, step)
        # Each row is on disk before the next one is logged.
        read = rows(folder / "metrics.csv")
        assert len(read) == step + 1 == logger.rows
    for step, (row, metrics) in enumerate(zip(read, logged, strict=True)):
        assert {k: float(v) for k, v in row.items() if v != ""} == {"step": step, **metrics}


def test_a_truncated_row_is_dropped(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path)
    for step in range(3):
        logger.log_metrics({"a": 1.5, "b": step}, step)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[:-5])
    carry_over(path, tmp_path / "new.csv", 3)
    assert [row["step"] for row in rows(tmp_path / "new.csv")] == ["0", "1"]


def test_continues_after_the_rows_of_the_checkpoint_and_keeps_the_others(tmp_path: Path) -> None:
    logger = MetricsCsv(tmp_path)
    for step in range(5):
        logger.log_metrics({"a": step}, step)
    path = tmp_path / "metrics.csv"
    before = path.read_text()
    carry_over(path, path, 5)
    assert path.read_text() == before
    assert not list(tmp_path.glob("metrics.before*"))
    for number in (1, 2):
        carry_over(path, path, 5 - 2 * number)
        assert len(rows(path)) == 5 - 2 * number
    assert (tmp_path / "metrics.before-1.csv").read_text() == before
    assert len(rows(tmp_path / "metrics.before-2.csv")) == 3


def test_a_missing_file_is_not_carried_over(tmp_path: Path) -> None:
    carry_over(tmp_path / "none.csv", tmp_path / "metrics.csv", 3)
    assert not list(tmp_path.iterdir())


def test_a_validation_is_logged_at_its_step_with_accumulated_batches(tmp_path: Path) -> None:
    trained(
        tmp_path,
        *("experiment=pinn_burgers", "callbacks=default", "weighting=upgrad", "model.widths=[4]"),
        *("data.points={inside:8,boundary:4,initial:4}", "data.grids=[[4,4],[4,4]]", "data.steps=12"),
        *("trainer.max_epochs=2", "trainer.accumulate_grad_batches=3", "trainer.val_check_interval=0.5"),
    )
    validations = [row for row in rows(tmp_path / "metrics.csv") if row["val/u/mse"]]
    assert [(row["step"], row["epoch"]) for row in validations] == [
        ("1", "0"),
        ("3", "0"),
        ("5", "1"),
        ("7", "1"),
    ]
