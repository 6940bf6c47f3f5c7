"""Names, overrides and paths are printed unchanged, and never interpreted as markup."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from multitask.evaluation.compare import compare
from multitask.run import evaluate
from multitask.run.console import show_config
from multitask.run.record import COLUMNS, write_results
from multitask.sweep import summary
from multitask.sweep.plan import Job
from multitask.terminal import decimal, terminal

TEXTS = [
    "[kinds/scalar]",
    "[/data/a.npz]",
    "[bold]loud[/bold]",
    "[red]",
    "[link=https://example.org]here[/link]",
    ":warning:",
    r"\[a]",
    "$x_1$",
    "<b>&amp;",
    "{brace}",
]


def write_run(folder: Path, task: str, seed: str, method: str, value: float) -> Path:
    folder.mkdir(parents=True)
    row = {"method": method, "seed": seed, "task": task, "metric": "mae", "split": "test", "value": value}
    row |= {"higher_is_better": False, "experiment": task, "config_digest": "a", "variant": ""}
    write_results(folder / "results.csv", [row, row | {"metric": task, "value": value + 1}])
    (folder / "run.json").write_text(json.dumps({"status": "completed"}))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_text_in_the_table_of_a_sweep(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [
        Job((f"task={value}", "seed=0"), write_run(tmp_path / value[:1], text, "0", text, 1.0), text, 0, "a")
        for value in (text, "other")
    ]
    summary.show(summary.summarize(jobs), text)
    printed = capsys.readouterr().out
    first = next(line for line in printed.splitlines() if line.startswith("│"))
    assert [cell.strip() for cell in first.split("│")[1:3]] == [text, text]
    assert f"sweep {text}" in printed
    head = next(line for line in printed.splitlines() if "┃ method" not in line and line.startswith("┃"))
    assert head.count(text) == 2  # above both metrics of the task


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("columns", ["20", "120"])
def test_text_in_the_table_of_a_run(
    text: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    row = dict.fromkeys(COLUMNS, "") | {"task": text, "metric": text, "split": "test", "value": "0.5"}
    evaluate.show([row])
    if columns == "120":
        assert capsys.readouterr().out.count(text) == 2
    else:
        assert capsys.readouterr().out  # wrapped over lines, without an error


class Reader(HTMLParser):
    """Collects a page's text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[1], ":warning:", "$x_1$", "<b>&amp;"])
def test_text_in_a_comparison(text: str, tmp_path: Path) -> None:
    sources = [
        str(write_run(tmp_path / f"{method}{seed}", text, f"{text}{seed}", f"{method}{text}", seed + index))
        for index, method in enumerate(("a", "b", "c"))
        for seed in range(2)
    ]
    output = io.StringIO()
    compare(sources, tmp_path / "out", console=Console(file=output, width=400))  # a console that reads markup
    lines = output.getvalue().splitlines()
    assert text in lines  # the experiment, as a title
    assert any(line.startswith(f"a{text} ") for line in lines)
    assert any(f"{text}/mae ↓" in line and f"{text}/{text} ↓" in line for line in lines)
    assert any(line.startswith(f"a{text} − b{text}") for line in lines)
    page = Reader((tmp_path / "out" / "index.html").read_text(encoding="utf-8")).text
    assert f"{text}/mae" in page
    assert f"a{text} − b{text}" in page


def test_lines_of_text_are_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    for text in TEXTS:
        terminal().print(text)
    assert capsys.readouterr().out.splitlines() == TEXTS


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.42014, "0.4201"),
        (3.25, "3.2500"),
        (0.0, "0.0000"),
        (0.0012, "0.0012"),
        (-3.14e-5, "-3.14e-05"),
        (1e-12, "1.00e-12"),
    ],
)
def test_small_numbers_keep_their_digits(value: float, shown: str) -> None:
    assert decimal(value) == shown


def test_a_config_is_shown_as_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    show_config(
        {"seed": 0, "data": {"path": "[a]/b", "split": [0.5]}, "tags": ["x"], "only": None, "callbacks": {}}
    )
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "config",
        "├── seed: 0",
        "├── data",
        "│   └── path: '[a]/b'",
        "│       split:",
        "│       - 0.5",
        "├── tags",
        "│   └── - x",
        "├── only: null",
        "└── callbacks: {}",
    ]
