from pathlib import Path

import pytest

from tests.unit.evaluation.hand_records import write_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Five seeds of three methods and their single-task runs, on the tasks left and right."""
    return write_sweep(tmp_path / "sweep", {"weighted_sum": 0.02, "upgrad": 0.012, "mgda": 0.0125})
