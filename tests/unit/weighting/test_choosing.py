"""The measured properties of the weightings include those proven for them, and docs/choosing.md lists them."""

import pytest

from tests.unit.weighting.choosing import PAGE, is_stateful, properties, regenerated

PROVEN = {
    "upgrad": {"no conflict", "all scales", "order", "linear", "rests"},
    "dualproj": {"no conflict", "all scales", "order", "rests"},
    "mgda": {"no conflict", "all scales", "order", "rests"},
    "nash_mtl": {"no conflict", "one scale", "all scales", "order", "rests"},
    "config": {"no conflict", "one scale", "all scales", "order"},
    "imtl_g": {"one scale", "all scales", "order"},
    "weighted_sum": {"all scales", "order", "linear"},
    "si": {"one scale", "all scales", "order"},
}
"""Properties proven in the papers, or by a line of algebra."""


@pytest.mark.parametrize("name", PROVEN)
def test_proven_properties_are_measured(name: str) -> None:
    found = {title for title, holds in properties(name).items() if holds}
    assert PROVEN[name] <= found


@pytest.mark.parametrize("name", ["cagrad", "mean", "pcgrad"])
def test_conflict_is_detected(name: str) -> None:
    assert not properties(name)["no conflict"]


def test_state_is_detected() -> None:
    assert is_stateful("famo")
    assert is_stateful("dwa")
    assert not is_stateful("upgrad")


@pytest.mark.slow
def test_table_of_the_docs_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert regenerated(page) == page, "run python -m tests.unit.weighting.choosing"
