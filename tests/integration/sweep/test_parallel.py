"""Parallel jobs with each launcher."""

import signal
from pathlib import Path

import pytest

from tests.integration.script_runner import Ran, Scripts
from tests.integration.sweep.small import SMALL, progress_of, records_of, runs_of, table_of

pytestmark = pytest.mark.slow


def swept(scripts: Scripts, arrays: Path, *arguments: str) -> tuple[Ran, Path]:
    """Run a sweep; return its result and its folder."""
    ran = scripts.start("-m", *SMALL, f"data.path={arrays}", *arguments).wait(600)
    return ran, next((scripts.logs / "npz" / "sweeps").iterdir())


@pytest.mark.smoke("joblib")
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_runs_the_sweep(scripts: Scripts, arrays: Path, launcher: str) -> None:
    ran, sweep = swept(scripts, arrays, f"hydra/launcher={launcher}", "optimizer.lr=0.1,1e30")
    ran.assert_error("1 of 2 jobs did not complete (1 failed)")
    assert "deprecated" not in ran.err
    assert [cells[3] for cells in table_of(ran.out)] == ["completed", "failed"]
    assert sorted(record["status"] for record in records_of(sweep)) == ["completed", "failed"]
    assert progress_of(ran.out)[-1].endswith("1 of 2 done, 0 running, 1 failed")


def test_killed_process_does_not_affect_other_jobs(scripts: Scripts, arrays: Path) -> None:
    trunks = "trunk._target_=multitask.nn.mlp.mlp,tests.integration.sweep.deadly.dies"
    ran, sweep = swept(scripts, arrays, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", trunks)
    assert ran.code == 1, ran.err
    assert [cells[3] for cells in table_of(ran.out)] == ["completed", "failed"]
    (failed,) = [record for record in records_of(sweep) if record["status"] == "failed"]
    assert failed["error"] == "its process died without an error message: killed, or out of memory"
    assert len(runs_of(sweep)) == 2


def test_unreachable_cluster_is_reported(scripts: Scripts, arrays: Path) -> None:
    ran, _ = swept(scripts, arrays, "hydra/launcher=ray", "hydra.launcher.init.address=auto")
    ran.assert_error("hydra.launcher.init.address=auto: Ray does not answer")


def test_launcher_that_is_not_installed_is_reported(scripts: Scripts, arrays: Path) -> None:
    missing = "hydra.launcher._target_=hydra_plugins.hydra_joblib_launcher.gone.Launcher"
    ran = scripts.run("-m", *SMALL, f"data.path={arrays}", "hydra/launcher=joblib", missing)
    assert ran.code == 1
    assert ran.err == (
        'error: hydra/launcher=joblib is not installed; install it with pip install -e ".[sweeps]".\n'
    )
    assert not scripts.logs.exists()


@pytest.mark.parametrize(
    "launcher", [("joblib", "hydra.launcher.n_jobs=2"), ("ray", "+hydra.launcher.init.num_cpus=2")]
)
def test_stopped_sweep_lets_its_jobs_save(scripts: Scripts, arrays: Path, launcher: tuple[str, str]) -> None:
    name, two = launcher
    long = ("trainer.max_epochs=100000", f"hydra/launcher={name}", two, "seed=0,1")
    running = scripts.start("-m", *SMALL, f"data.path={arrays}", "sweep=stopped", *long)
    sweep = scripts.logs / "npz" / "sweeps" / "stopped"
    running.wait_for(lambda: len(list(sweep.glob("*/checkpoints/last.ckpt"))) == 2, seconds=120)
    running.signal(signal.SIGTERM)
    ran = running.wait()
    assert ran.code == 128 + signal.SIGTERM, ran.err
    assert [cells[2] for cells in table_of(ran.out)] == ["interrupted", "interrupted"]
    for record in records_of(sweep):
        assert record["status"] == "interrupted"
        assert "stopped by SIGTERM; resume with" in record["error"]
