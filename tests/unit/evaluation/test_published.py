"""The published tables in data/published."""

from pathlib import Path

import pytest

from multitask.evaluation.compare import load
from multitask.evaluation.comparison import Settings, compare_records
from multitask.evaluation.records import read
from multitask.evaluation.sources import find
from tests.unit.evaluation.hand_records import write_sweep

PUBLISHED = Path(__file__).parents[3] / "data" / "published"
METHODS = {"weighted_sum", "si", "rlw", "dwa", "uw", "mgda"}
METHODS |= {"pcgrad", "cagrad", "imtl_g", "nash_mtl", "famo", "fairgrad"}


@pytest.mark.parametrize(
    ("experiment", "sum_scalar", "fairgrad"),
    [("nyuv2", 5.59, -4.66), ("cityscapes", 22.60, 5.18), ("qm9", 177.6, 57.9), ("celeba", 4.15, 0.37)],
)
def test_tables_are_valid_records_with_a_source(experiment: str, sum_scalar: float, fairgrad: float) -> None:
    records = read(find(str(PUBLISHED / f"{experiment}.csv")))
    assert set(records.runs["method"]) == METHODS
    assert set(records.runs["experiment"]) == {experiment}
    assert (records.runs["source"] != "").all()
    assert (records.runs["selection"] != "").all()
    assert set(records.results["metric"]) == {"delta_m"}
    values = dict(zip(records.runs["method"], records.results["value"], strict=True))
    assert (values["weighted_sum"], values["fairgrad"]) == (sum_scalar, fairgrad)


def test_published_changes_are_shown_but_enter_no_statistic(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"weighted_sum": 0.02, "famo": 0.01}, experiment="nyuv2")
    (alone,) = compare_records(load(str(sweep)), Settings())
    both = compare_records(load([str(sweep), str(PUBLISHED)]), Settings())
    assert [each.experiment for each in both] == ["nyuv2", "celeba", "cityscapes", "qm9"]
    beside = both[0]
    assert set(beside.quoted["method"]) == METHODS
    assert [entry.label for entry in beside.entries] == ["famo", "weighted_sum"]
    assert [entry.delta_m for entry in beside.entries] == [entry.delta_m for entry in alone.entries]
    assert beside.pairs.equals(alone.pairs)
    assert beside.cautions == alone.cautions
    assert all(each.published and not each.rows for each in both[1:])


def test_published_metrics_are_compared_separately(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", {"weighted_sum": 0.02}, experiment="nyuv2")
    table = tmp_path / "theirs.csv"
    head = "method,seed,task,metric,split,value,higher_is_better,experiment,source\n"
    rows = [
        "single_task,,seg,miou,test,38.30,True",
        "famo,,seg,miou,test,38.88,True",
        "uw,,seg,miou,test,36.87,True",
    ]
    table.write_text(head + "".join(f"{row},nyuv2,A paper (2023)\n" for row in rows))
    measured, theirs = compare_records(load([str(sweep), str(table)]), Settings())
    assert [entry.label for entry in measured.entries] == ["weighted_sum"]
    assert theirs.published
    assert [entry.label for entry in theirs.entries] == ["famo", "uw"]
    delta = theirs.entries[0].delta_m
    assert delta is not None
    assert delta.mean == pytest.approx(-100 * (38.88 - 38.30) / 38.30)
    assert theirs.pairs.empty
