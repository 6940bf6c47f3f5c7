"""The tables of the docs' page of weightings: ``python -m tests.unit.weighting.table`` rewrites them."""

from pathlib import Path
from string import ascii_letters

from multitask.weighting.base import JacobianMethod, Scalarization
from tests.unit.weighting.members import CONFIGS, NAMES, make, number_of_tasks
from tests.unit.weighting.promises import NOTES, PROMISES

PAGE = Path(__file__).parents[3] / "docs" / "weightings.md"
END = "<!-- end of table -->\n"


def begin(what: str) -> str:
    """Return the line before a table."""
    return f"<!-- {what}: made by tests/unit/weighting/table.py -->\n"


def about(name: str) -> str:
    """Return what a YAML says of itself after its command."""
    lines = (CONFIGS / "weighting" / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines[1:] if line.startswith("#"))


def kind(name: str) -> str:
    """Return how a member comes to its update."""
    combiner = make(name, number_of_tasks(name))
    if isinstance(combiner, Scalarization):
        return "scalarization"
    assert isinstance(combiner, JacobianMethod)
    return "Jacobian" + {"task": "", "half": ", two halves", "example": ", every example"}[combiner.rows]


def members() -> str:
    """Return the table of what there is, one row a YAML."""
    rows = [f"| `{name}` | {kind(name)} | {about(name)} |" for name in NAMES]
    return "\n".join(["| weighting | kind | what it is |", "| --- | --- | --- |", *rows]) + "\n"


def promises() -> str:
    """Return the table of which promise holds where, and below it why one does not, or on what terms."""
    reasons = list(dict.fromkeys(note.why for notes in NOTES.values() for note in notes.values()))
    letters = dict(zip(reasons, ascii_letters, strict=False))

    def cell(promise: str, name: str) -> str:
        note = NOTES.get(promise, {}).get(name)
        if note is None:
            return "✓"
        return f"{'✓' if note.holds else '–'} {letters[note.why]}"

    head = ["weighting", *PROMISES.values()]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' :-- |' * len(PROMISES)}"]
    alike: dict[str, list[str]] = {}
    for name in NAMES:
        alike.setdefault(" | ".join(cell(p, name) for p in PROMISES), []).append(f"`{name}`")
    lines += [f"| {', '.join(names)} | {cells} |" for cells, names in alike.items()]
    notes = [f"- {letter}: {why}" for why, letter in letters.items()]
    return "\n".join([*lines, "", *notes]) + "\n"


def renewed(page: str) -> str:
    """Return the page with the tables as the code has them."""
    for what, table in (("table", members()), ("promises", promises())):
        before, rest = page.split(begin(what))
        page = before + begin(what) + table + END + rest.split(END, 1)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
