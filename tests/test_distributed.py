"""Two processes with half the batch each equal one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.run_distributed import METHODS, train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("distributed") / "parameters"
    done = subprocess.run(
        [sys.executable, "-m", "tests.run_distributed", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_processes_equal_one(two_processes: list[dict], method: str, accumulate: int) -> None:
    """Uneven last batches, and a task that is labelled in some batches and ranks only."""
    expected = train(method, 8, accumulate, devices=1)
    first, second = (found[method, accumulate] for found in two_processes)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-8, atol=1e-10, msg=name)
