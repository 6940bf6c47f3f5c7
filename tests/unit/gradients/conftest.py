"""Small problems take all ways to compute gradients."""

import pytest

from multitask.gradients import batched


@pytest.fixture(autouse=True)
def few_rows_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute three rows in one pass, too, where it would not be faster."""
    monkeypatch.setattr(batched, "_FEWEST_ON_CPU", 3)
