"""The table of figures that a run ends with."""

import pytest

from multitask.run.evaluate import show


@pytest.mark.parametrize(("columns", "lines"), [("120", 2), ("50", 9)])
def test_no_figure_is_cut_however_narrow_the_terminal(
    columns: str, lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    metrics = [f"metric_{i}" for i in range(8)]
    rows = [
        {"task": "depth", "metric": m, "split": "test", "value": f"{i / 8}"} for i, m in enumerate(metrics)
    ]
    show([*rows, {"task": "normals", "metric": "loss", "split": "test", "value": "3.25"}])
    printed = capsys.readouterr().out
    assert sum(line.startswith("│") for line in printed.splitlines()) == lines
    assert "…" not in printed
    for word in ("depth", "normals", "3.2500", *metrics, *(f"{i / 8:.4f}" for i in range(8))):
        assert word in printed
