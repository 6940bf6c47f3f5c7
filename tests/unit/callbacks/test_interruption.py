"""A signal to one process stops all of them before the same step."""

import signal
from pathlib import Path

from tests.unit.two_processes import found_by


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    found = found_by("tests.unit.callbacks.run_interrupted", tmp_path / "found")
    assert found == [{"number": signal.SIGTERM, "step": 3}] * 2
