"""The properties of each weighting are those that docs/choosing.md lists, and those that are proven of it."""

import pytest

from tests.unit.weighting.choosing import PAGE, properties, remembers, renewed

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
"""By the papers, or by a line of algebra."""


@pytest.mark.parametrize("name", PROVEN)
def test_proven_properties_are_measured(name: str) -> None:
    found = {title for title, holds in properties(name).items() if holds}
    assert PROVEN[name] <= found


@pytest.mark.parametrize("name", ["cagrad", "mean", "pcgrad"])
def test_conflict_is_found_where_it_can_be(name: str) -> None:
    assert not properties(name)["no conflict"]


def test_memory_is_found() -> None:
    assert remembers("famo")
    assert remembers("dwa")
    assert not remembers("upgrad")


@pytest.mark.slow
def test_docs_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    assert renewed(page) == page, "run python -m tests.unit.weighting.choosing"
