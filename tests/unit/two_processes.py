"""What a module finds on several processes."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def found_by(module: str, out: Path, processes: int = 2) -> list[dict]:
    """Run a module that starts so many processes, and return what each has saved at ``<out>.<rank>``."""
    done = subprocess.run(
        [sys.executable, "-m", module, str(out), str(processes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(processes)]
