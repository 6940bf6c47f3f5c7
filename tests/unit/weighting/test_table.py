"""The tables of docs/weightings.md agree with the YAML files and the classes."""

from tests.unit.weighting.table import PAGE, regenerated


def test_tables_of_the_docs_are_up_to_date() -> None:
    page = PAGE.read_text()
    assert regenerated(page) == page, "run python -m tests.unit.weighting.table"
