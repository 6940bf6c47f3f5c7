"""Reading of run folders and tables."""

import math
from pathlib import Path

import pytest

from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.records import read
from multitask.evaluation.sources import find
from tests.unit.evaluation.hand_records import write_run, write_table

ROW = {"method": "uw", "seed": 0, "task": "left", "metric": "accuracy", "split": "test", "value": 0.5}
ROW |= {"higher_is_better": True}


def test_folder_selects_every_run_below_it(sweep: Path) -> None:
    assert len(find(str(sweep)).run_folders) == 5 * (3 + 2)
    assert find(str(sweep)) == find([str(sweep), str(sweep / "upgrad_0")])  # runs are not counted twice
    assert find(str(sweep / "upgrad_*")).run_folders == tuple(sweep / f"upgrad_{seed}" for seed in range(5))
    assert find(str(sweep / "**")).run_folders == find(str(sweep)).run_folders
    assert find(str(sweep / "upgrad_0" / "results.csv")).run_folders == (sweep / "upgrad_0",)


def test_files_inside_a_run_are_not_another_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "uw", 0, {"left/accuracy": 0.5})
    write_table(run / "checkpoints" / "results.csv", [ROW])
    assert find(str(tmp_path)).run_folders == (run,)


def test_folder_of_tables_selects_its_files(tmp_path: Path) -> None:
    file = write_table(tmp_path / "published.csv", [ROW])
    assert find(str(tmp_path)).record_files == (file,)


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.csv", []])
def test_empty_source_is_rejected(source: str | list[str]) -> None:
    with pytest.raises(ComparisonError, match="source"):
        find(source)


def test_results_and_runs_are_read(tmp_path: Path) -> None:
    write_run(
        tmp_path / "run", "uw", 3, {"left/accuracy": 0.5, "right/error": 0.25}, step_seconds=0.01, sweep="s1",
        higher={"left/accuracy": True, "right/error": False}, peak_memory_mib=None, selection="last",
    )  # fmt: skip
    records = read(find(str(tmp_path)))
    (run,) = records.runs.to_dict("records")
    assert (run["method"], run["seed"], run["status"], run["sweep"]) == ("uw", "3", "completed", "s1")
    assert run["step_seconds"] == 0.01
    assert math.isnan(run["peak_memory_mib"])
    assert records.results[["task", "metric", "value", "higher", "selection"]].values.tolist() == [
        ["left", "accuracy", 0.5, True, "last"],
        ["right", "error", 0.25, False, "last"],
    ]


def test_table_with_only_the_seven_columns_is_a_record(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"task": "right", "value": ""}, ROW | {"seed": "1.0", "higher_is_better": ""}]
    records = read(find(str(write_table(tmp_path / "theirs.csv", rows))))
    assert records.runs["experiment"].unique().tolist() == ["theirs"]
    assert records.runs["seed"].tolist() == ["0", "1"]
    assert records.results["run"].tolist() == [0, 0, 1]
    assert math.isnan(records.results["value"][1])
    assert records.results["higher"].tolist() == [True, True, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"value": "many"}, "not a number"), ({"higher_is_better": "perhaps"}, "higher_is_better='perhaps'")],
)
def test_invalid_value_is_rejected(tmp_path: Path, change: dict[str, str], message: str) -> None:
    file = write_table(tmp_path / "bad.csv", [ROW | change])
    with pytest.raises(ComparisonError, match=message):
        read(find(str(file)))


def test_missing_column_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "short.csv"
    file.write_text("method,seed,task,metric,value,higher_is_better\n")
    with pytest.raises(ComparisonError, match="lacks the column split"):
        read(find(str(file)))


def test_truncated_status_is_read_as_unreadable(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "uw", 0, {"left/accuracy": 0.5})
    (run / "run.json").write_text('{"status": "comp')
    assert read(find(str(tmp_path))).runs["status"].tolist() == ["unreadable"]


def test_a_run_that_failed_before_its_first_result_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "uw", 4, {}, status="failed", error="CUDA out of memory")
    records = read(find(str(tmp_path)))
    assert records.runs[["method", "seed", "status", "error"]].values.tolist() == [
        ["uw", "4", "failed", "CUDA out of memory"]
    ]
    assert records.results.empty


def test_where_a_metric_of_a_table_comes_again_another_run_begins(tmp_path: Path) -> None:
    rows = [ROW | {"seed": "", "task": task} for _ in range(2) for task in ("left", "right")]
    records = read(find(str(write_table(tmp_path / "twice.csv", rows))))
    assert records.results["run"].tolist() == [0, 0, 1, 1]


def test_utf_8_with_bom_is_read_and_latin_1_is_rejected(tmp_path: Path) -> None:
    file = write_table(tmp_path / "theirs.csv", [ROW | {"method": "é"}])
    text = file.read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8-sig")
    assert read(find(str(file))).runs["method"].tolist() == ["é"]
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ComparisonError, match="is not a CSV file in UTF-8"):
        read(find(str(file)))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "mean/mae",
            "has a task named 'mean', and <split>/mean/<metric> is the mean over tasks; rename it there",
        ),
        (
            "combined/mae",
            "has a task named 'combined', and the record uses this name for the weighting's scalar",
        ),
        (
            "loss/mae",
            "has a task named 'loss', and <split>/loss/<task> is the loss of a task; rename it there",
        ),
        ("left/delta_m", "has a metric named 'delta_m', and the record uses this name for changes"),
    ],
)
def test_reserved_name_in_an_older_record_is_rejected(key: str, message: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", "uw", 0, {"left/mae": 1.0, key: 2.0})
    with pytest.raises(ComparisonError, match=r"results\.csv") as error:
        read(find(str(tmp_path)))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_tables_may_contain_changes_and_runs_their_combined_loss(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "uw", 0, {"left/mae": 1.0, "combined/loss": 2.0})
    quoted = [ROW | {"task": task, "metric": "delta_m"} for task in ("all", "combined", "")]
    write_table(tmp_path / "theirs.csv", [ROW, *quoted])
    assert len(read(find([str(tmp_path / "run"), str(tmp_path / "theirs.csv")])).results) == 6


def test_two_metrics_of_one_name_in_a_run_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "uw", 0, {"left/mae": 1.0})
    write_table(run / "results.csv", [ROW, ROW | {"value": 0.75}])
    with pytest.raises(ComparisonError, match="two values of left/accuracy on the split test"):
        read(find(str(tmp_path)))
