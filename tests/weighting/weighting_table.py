"""The table of weightings in the docs: ``python -m tests.weighting.weighting_table`` writes it anew."""

from pathlib import Path

from multitask.weighting.base import JacobianMethod, Scalarization
from tests.weighting.weighting_members import CONFIGS, NAMES, NEEDS_THREE, make

PAGE = Path(__file__).parents[2] / "docs" / "weightings.md"
BEGIN, END = "<!-- table: made by tests/weighting/weighting_table.py -->\n", "<!-- end of table -->\n"


def about(name: str) -> str:
    """Return what a YAML says of itself after its command."""
    lines = (CONFIGS / "weighting" / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines[1:] if line.startswith("#"))


def kind(name: str) -> str:
    """Return how a member comes to its update, and what its config does not allow."""
    combiner = make(name, 5 if name in NEEDS_THREE else 3)
    if isinstance(combiner, Scalarization):
        return "scalarization"
    assert isinstance(combiner, JacobianMethod)
    of = {"task": "", "half": ", two halves", "example": ", every example; no accumulation, one process"}
    return f"Jacobian{of[combiner.rows]}{'; no engine=features' if combiner.of_parameters else ''}"


def table() -> str:
    """Return the table, one row a YAML."""
    rows = [f"| `{name}` | {kind(name)} | {about(name)} |" for name in NAMES]
    return "\n".join(["| weighting | kind | what it is |", "| --- | --- | --- |", *rows]) + "\n"


def renewed(page: str) -> str:
    """Return the page with the table as the code has it."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
