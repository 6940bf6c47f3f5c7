"""Resumed sweeps."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration.script_runner import Scripts
from tests.integration.small import rows
from tests.integration.sweep.small import SMALL, records_of, results_of, runs_of, table_of

pytestmark = pytest.mark.slow
LONG = (*(argument for argument in SMALL if "max_epochs" not in argument), "trainer.max_epochs=12")


def statuses_of(printed: str) -> dict[str, str]:
    """Return the status of each seed in the last printed table."""
    return {seed: status for _, seed, status, *_ in table_of(printed)}


def test_stopped_and_killed_sweep_ends_like_an_uninterrupted_one(scripts: Scripts, arrays: Path) -> None:
    command = ("-m", *LONG, f"data.path={arrays}", "weighting=imtl_l", "seed=0,1,2")
    sweep = scripts.logs / "npz" / "sweeps" / "stopped"

    def folder(seed: int) -> Path:
        return next(sweep.glob(f"*-seed_{seed}-*"), sweep / "none yet")

    def begun(seed: int) -> bool:
        return (folder(seed) / "checkpoints" / "last.ckpt").is_file()

    running = scripts.start(*command, "sweep=stopped")
    running.wait_for(lambda: begun(0))
    running.signal(signal.SIGTERM)
    ran = running.wait()
    assert ran.code == 128 + signal.SIGTERM
    assert statuses_of(ran.out) == {"0": "interrupted", "1": "not started", "2": "not started"}

    running = scripts.start("sweep=stopped")
    running.wait_for(lambda: begun(1))
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    done = (folder(0) / "results.csv").stat().st_mtime_ns
    assert [r["status"] for r in records_of(sweep)] == ["completed", "running"]

    ran = scripts.run("sweep=stopped")
    assert ran.code == 0, ran.err
    assert statuses_of(ran.out) == dict.fromkeys("012", "completed")
    assert (folder(0) / "results.csv").stat().st_mtime_ns == done
    resumed = [json.loads((folder(seed) / "run.json").read_text()).get("resumed_from") for seed in range(3)]
    assert resumed == [str(folder(seed) / "checkpoints" / "last.ckpt") for seed in (0, 1)] + [None]

    whole = scripts.run(*command, "sweep=whole")
    assert whole.code == 0, whole.err
    for stopped, straight in zip(runs_of(sweep), runs_of(whole.folder), strict=True):
        assert stopped.name == straight.name
        assert rows(stopped / "metrics.csv") == rows(straight / "metrics.csv")
        values = [[row["value"] for row in results_of(run)] for run in (stopped, straight)]
        assert values[0] == values[1]


def test_job_running_in_another_process_is_skipped(scripts: Scripts, arrays: Path) -> None:
    command = ("-m", *LONG, f"data.path={arrays}", "seed=0,1", "sweep=shared")
    sweep = scripts.logs / "npz" / "sweeps" / "shared"
    first = scripts.start(*command)
    first.wait_for(lambda: len(runs_of(sweep)) == 1)
    first.signal(signal.SIGSTOP)  # so that it cannot start the second job first
    second = scripts.run("sweep=shared")
    first.signal(signal.SIGCONT)
    ran = first.wait()
    assert ran.code == second.code == 0, ran.err + second.err
    assert [record["status"] for record in records_of(sweep)] == ["completed"] * 2
    assert statuses_of(second.out) == {"0": "running", "1": "completed"}
    assert "has completed" in ran.out
    assert not any("resumed_from" in record for record in records_of(sweep))


@pytest.mark.smoke
def test_failed_jobs_are_retried(scripts: Scripts, arrays: Path) -> None:
    late = arrays.with_name("late.npz")
    ran = scripts.run("-m", *SMALL, f"data.path={arrays},{late}", "sweep=tried")
    assert ran.code == 1
    assert sorted(record["status"] for record in records_of(ran.folder)) == ["completed", "failed"]
    os.link(arrays, late)
    ran = scripts.run("sweep=tried", "trainer.enable_model_summary=true")
    assert ran.code == 0, ran.err
    assert [record["status"] for record in records_of(ran.folder)] == ["completed"] * 2
    assert ran.out.count("skipped: ") == 0  # completed jobs are not launched

    unknown = scripts.run("sweep=tired")
    assert unknown.code == 1
    assert "no such sweep in" in unknown.err
    assert "did you mean 'tried'?" in unknown.err
    changed = scripts.run("sweep=tried", "trainer.max_epochs=2")
    assert changed.code == 1
    assert "has 2 jobs that this command lacks" in changed.err


@pytest.mark.smoke
def test_job_on_two_processes_counts_once(scripts: Scripts, arrays: Path) -> None:
    small = [argument for argument in SMALL if "batch_size" not in argument and "logger" not in argument]
    ran = scripts.run("-m", *small, f"data.path={arrays}", "trainer=ddp_cpu", "data.batch_size=8", "seed=0,1")
    assert ran.code == 0, ran.err
    assert [record["status"] for record in records_of(ran.folder)] == ["completed"] * 2
    assert sorted(path.name for path in scripts.logs.glob("npz/*")) == ["sweeps"]
    assert len(list(ran.folder.parent.iterdir())) == 1
    jobs = [path for path in ran.folder.iterdir() if path.is_dir() and path.name != "wandb"]
    assert len(jobs) == 2
    assert [len(list(job.glob("wandb/offline-run-*"))) for job in jobs] == [1, 1]
