"""The table of metrics printed at the end of a run."""

import pytest

from multitask.run.evaluate import show


@pytest.mark.parametrize(("columns", "lines"), [("120", 2), ("50", 9)])
def test_no_value_is_truncated_in_a_narrow_terminal(
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
