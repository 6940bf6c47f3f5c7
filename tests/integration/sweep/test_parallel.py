"""Jobs side by side, by each launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.script_runner import ROOT, plainly
from tests.integration.sweep.small import SMALL, progress_of, records_of, runs_of, table_of

pytestmark = pytest.mark.slow


def swept(logs: Path, arrays: Path, *arguments: str) -> tuple[int, str, str, Path]:
    """Run a sweep and return its exit code, what it printed, its errors and its folder."""
    given = ("-m", *SMALL, f"data.path={arrays}", f"paths.logs={logs}", *arguments)
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    ran = plainly(str(ROOT / "scripts" / "train.py"), *given, cwd=logs.parent, env=env)
    return ran.returncode, ran.stdout, ran.stderr, next((logs / "npz" / "sweeps").iterdir())


@pytest.mark.smoke("joblib")
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_runs_the_sweep(tmp_path: Path, arrays: Path, launcher: str) -> None:
    grid = (f"hydra/launcher={launcher}", "optimizer.lr=0.1,1e30")
    code, out, err, sweep = swept(tmp_path / "logs", arrays, *grid)
    assert code == 1
    assert "1 of 2 jobs did not complete (1 failed)" in err
    assert "Traceback" not in err
    assert "deprecated" not in err
    assert [cells[3] for cells in table_of(out)] == ["completed", "failed"]
    assert sorted(record["status"] for record in records_of(sweep)) == ["completed", "failed"]
    assert progress_of(out)[-1].endswith("1 of 2 done, 0 running, 1 failed")


def test_a_process_that_is_killed_takes_no_other_job_along(tmp_path: Path, arrays: Path) -> None:
    trunks = "trunk._target_=multitask.nn.mlp.mlp,tests.integration.sweep.deadly.dies"
    code, out, err, sweep = swept(
        tmp_path / "logs", arrays, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", trunks
    )
    assert code == 1, err
    assert [cells[3] for cells in table_of(out)] == ["completed", "failed"]
    (failed,) = [record for record in records_of(sweep) if record["status"] == "failed"]
    assert failed["error"] == "its process died without an error message: killed, or out of memory"
    assert len(runs_of(sweep)) == 2


def test_a_cluster_that_does_not_answer_is_said(tmp_path: Path, arrays: Path) -> None:
    code, _, err, _ = swept(
        tmp_path / "logs", arrays, "hydra/launcher=ray", "hydra.launcher.init.address=auto"
    )
    assert code == 1
    assert "hydra.launcher.init.address=auto: Ray does not answer" in err
    assert "Traceback" not in err


def test_what_is_not_installed_is_said(tmp_path: Path, arrays: Path) -> None:
    missing = "hydra.launcher._target_=hydra_plugins.hydra_joblib_launcher.gone.Launcher"
    given = (
        "-m",
        *SMALL,
        f"data.path={arrays}",
        f"paths.logs={tmp_path}/logs",
        "hydra/launcher=joblib",
        missing,
    )
    ran = plainly(str(ROOT / "scripts" / "train.py"), *given, cwd=tmp_path)
    assert ran.returncode == 1
    assert ran.stderr == (
        'error: hydra/launcher=joblib is not installed; install it with pip install -e ".[sweeps]".\n'
    )
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "launcher", [("joblib", "hydra.launcher.n_jobs=2"), ("ray", "+hydra.launcher.init.num_cpus=2")]
)
def test_a_sweep_that_is_asked_to_stop_lets_its_jobs_save(
    tmp_path: Path, arrays: Path, launcher: tuple[str, str]
) -> None:
    name, two = launcher
    long = ("trainer.max_epochs=100000", f"hydra/launcher={name}", two, "seed=0,1")
    given = ("-m", *SMALL, f"data.path={arrays}", f"paths.logs={tmp_path}/logs", "sweep=stopped", *long)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *given],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    sweep = tmp_path / "logs" / "npz" / "sweeps" / "stopped"
    until = time.monotonic() + 120
    while len(list(sweep.glob("*/checkpoints/last.ckpt"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert [cells[2] for cells in table_of(out)] == ["interrupted", "interrupted"]
    for record in records_of(sweep):
        assert record["status"] == "interrupted"
        assert "stopped by SIGTERM; resume with" in record["error"]
