"""What docs/library.md shows runs, block after block."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import multitask

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "library.md").read_text()


def test_every_block_runs() -> None:
    """All in one program, as one reads them."""
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) >= 10
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/library.md, block {number}", "exec"), names)


@pytest.mark.parametrize("command", re.findall(r"`python (\S+)`", PAGE))
def test_every_command_runs(command: str, tmp_path: Path) -> None:
    script = ROOT / command
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


def test_every_example_is_listed() -> None:
    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")} == set(
        re.findall(r"`python (\S+)`", PAGE)
    )


def test_names_are_public() -> None:
    assert set(re.findall(r"multitask\.([A-Z]\w+)", PAGE)) <= set(multitask.__all__)
