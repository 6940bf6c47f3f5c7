"""scripts/compare.py as a user runs it."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.integration.script_runner import Scripts
from tests.unit.evaluation.hand_records import write_sweep

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "140"}
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.smoke
@pytest.mark.slow
def test_a_sweep_is_compared_from_the_command_line(tmp_path: Path) -> None:
    write_sweep(tmp_path / "logs" / "toy" / "sweeps" / "s1", {"weighted_sum": 0.02, "upgrad": 0.01}, range(3))
    done = run("source=logs/*/sweeps/s1", "output=here", "metrics=[accuracy]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "upgrad has the lowest Δm" in done.stdout
    assert (tmp_path / "here" / "index.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "logs"]  # no folder of Hydra's


@pytest.mark.slow
@pytest.mark.parametrize("script", ["compare", "eval"])
def test_help_names_the_keys(script: str, scripts: Scripts) -> None:
    ran = scripts.start_file(f"scripts/{script}.py", "--help").wait()
    assert ran.code == 0
    assert f"configs/{script}.yaml" in ran.out
    assert "weighting: aligned_mtl" not in ran.out  # the choices of train.py


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "source is missing"),
        (["source=nowhere"], "source=nowhere matches no run folder"),
        (["source=nowhere", "accept_other_baseline=no"], "accept_other_baseline=no is not true or false."),
        (["source=nowhere", "difference=much"], "difference=much is not a number of at least 0."),
        (["source=nowhere", "sorce=x"], "error: sorce is not a key of the config; did you mean 'source'?"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    arguments: list[str], said: str, scripts: Scripts, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    ran = scripts.start_file("scripts/compare.py", *arguments, before=partial(os.chdir, here)).wait()
    assert ran.code == 1
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert list(here.iterdir()) == []
