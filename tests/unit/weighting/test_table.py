"""The docs list every weighting as its YAML and its class describe it."""

from tests.unit.weighting.table import PAGE, renewed


def test_docs_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    assert renewed(page) == page, "run python -m tests.unit.weighting.table"
