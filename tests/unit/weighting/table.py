"""The tables of docs/weightings.md, which ``python -m tests.unit.weighting.table`` rewrites."""

from pathlib import Path
from string import ascii_letters

from multitask.weighting.base import JacobianMethod, Scalarization
from tests.unit.weighting.members import CONFIGS, NAMES, make, number_of_tasks
from tests.unit.weighting.promises import NOTES, PROMISES

PAGE = Path(__file__).parents[3] / "docs" / "weightings.md"
END = "<!-- end of table -->\n"


def begin(table: str) -> str:
    """Return the line before a table."""
    return f"<!-- {table}: made by tests/unit/weighting/table.py -->\n"


def description(name: str) -> str:
    """Return the description in a YAML: its comment after the command."""
    lines = (CONFIGS / "weighting" / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines[1:] if line.startswith("#"))


def kind(name: str) -> str:
    """Return whether a member is a scalarization or a Jacobian method, and of which rows."""
    combiner = make(name, number_of_tasks(name))
    if isinstance(combiner, Scalarization):
        return "scalarization"
    assert isinstance(combiner, JacobianMethod)
    return "Jacobian" + {"task": "", "half": ", two halves", "example": ", every example"}[combiner.rows]


def members() -> str:
    """Return the table of the members, one line per YAML."""
    rows = [f"| `{name}` | {kind(name)} | {description(name)} |" for name in NAMES]
    return "\n".join(["| weighting | kind | description |", "| --- | --- | --- |", *rows]) + "\n"


def promises() -> str:
    """Return the table of the promises by member, followed by the notes."""
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


def regenerated(page: str) -> str:
    """Return the page with its tables generated again."""
    for name, table in (("table", members()), ("promises", promises())):
        before, rest = page.split(begin(name))
        page = before + begin(name) + table + END + rest.split(END, 1)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(regenerated(PAGE.read_text()))
