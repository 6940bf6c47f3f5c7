"""scripts/compare.py from the command line."""

import os
from functools import partial
from pathlib import Path

import pytest

from tests.integration.script_runner import ROOT, Scripts, run_python
from tests.unit.evaluation.hand_records import write_sweep


@pytest.mark.smoke
@pytest.mark.slow
def test_sweep_is_compared(tmp_path: Path) -> None:
    write_sweep(tmp_path / "logs" / "toy" / "sweeps" / "s1", {"weighted_sum": 0.02, "upgrad": 0.01}, range(3))
    script = str(ROOT / "scripts" / "compare.py")
    arguments = ("source=logs/*/sweeps/s1", "output=here", "metrics=[accuracy]")
    environment = {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "140"}
    done = run_python(script, *arguments, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "upgrad has the lowest Δm" in done.stdout
    assert (tmp_path / "here" / "index.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "logs"]  # Hydra writes no folder


@pytest.mark.slow
@pytest.mark.parametrize("script", ["compare", "eval"])
def test_help_names_the_config(script: str, scripts: Scripts) -> None:
    ran = scripts.start_file(f"scripts/{script}.py", "--help").wait()
    assert ran.code == 0
    assert f"configs/{script}.yaml" in ran.out
    assert "weighting: aligned_mtl" not in ran.out  # the choices of train.py


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "source is missing"),
        (["source=nowhere"], "source=nowhere matches no run folder"),
        (["source=nowhere", "accept_other_baseline=no"], "accept_other_baseline=no is not true or false."),
        (["source=nowhere", "difference=much"], "difference=much is not a number of at least 0."),
        (["source=nowhere", "sorce=x"], "error: sorce is not a key of the config; did you mean 'source'?"),
    ],
)
def test_mistake_is_reported_in_one_sentence(
    arguments: list[str], message: str, scripts: Scripts, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    ran = scripts.start_file("scripts/compare.py", *arguments, before=partial(os.chdir, here)).wait()
    ran.assert_error(message)
    assert list(here.iterdir()) == []
