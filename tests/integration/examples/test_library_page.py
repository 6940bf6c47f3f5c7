"""The code blocks and commands of docs/library.md run."""

import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import multitask
from tests.integration.script_runner import ROOT, Scripts

PAGE = (ROOT / "docs" / "library.md").read_text()


def test_every_block_runs() -> None:
    """All blocks run in order, in one namespace."""
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) >= 10
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/library.md, block {number}", "exec"), names)


@pytest.mark.smoke("examples/plain_loop.py")
@pytest.mark.slow
@pytest.mark.parametrize("command", re.findall(r"`python (\S+)`", PAGE))
def test_every_command_runs(command: str, scripts: Scripts, tmp_path: Path) -> None:
    ran = scripts.start_file(command, before=partial(os.chdir, tmp_path)).wait()
    assert ran.code == 0, ran.err[-2000:]
    assert ran.out


def test_every_example_is_listed() -> None:
    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")} == set(
        re.findall(r"`python (\S+)`", PAGE)
    )


def test_names_are_public() -> None:
    assert set(re.findall(r"multitask\.([A-Z]\w+)", PAGE)) <= set(multitask.__all__)
