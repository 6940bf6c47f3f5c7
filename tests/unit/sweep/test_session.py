"""Launching and relaunching of jobs, with a launcher that only writes their folders."""

import json
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from multitask.errors import ConfigError, RunFailed
from multitask.sweep.claim import NAME
from multitask.sweep.plan import Job
from multitask.sweep.progress import line
from multitask.sweep.session import begin, launch, raise_if_incomplete
from multitask.sweep.signals import Stop
from multitask.sweep.state import status_of


def jobs_in(folder: Path, count: int = 4) -> list[Job]:
    return [Job((f"seed={i}",), folder / str(i), "upgrad", i, "digest") for i in range(count)]


def write_job(job: Job, status: str, **facts: object) -> None:
    job.folder.mkdir(exist_ok=True)
    (job.folder / NAME).touch()
    (job.folder / "run.json").write_text(json.dumps({"status": status, "config_digest": "digest", **facts}))


class Pool:
    """Runs all jobs of a batch together; a job that dies aborts the batch."""

    def __init__(self, jobs: Sequence[Job], dies: Callable[[Job], bool] = lambda job: False) -> None:
        self.by_override = {job.overrides: job for job in jobs}
        self.dies = dies
        self.batches: list[list[int]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        batch = [self.by_override[tuple(overrides)] for overrides in job_overrides]
        assert batch[0].seed == initial_job_idx
        self.batches.append([job.seed for job in batch])
        if any(self.dies(job) for job in batch):
            # The first two jobs have started.
            for job in batch[:2]:
                write_job(job, "running")
            raise RuntimeError("a worker has died")
        for job in batch:
            write_job(job, "completed")


def test_only_unfinished_jobs_are_launched(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, 5)
    write_job(jobs[0], "completed")
    write_job(jobs[1], "failed")
    write_job(jobs[2], "running")  # although its process has died
    pool = Pool(jobs)
    launch(pool, jobs, Stop(jobs))  # type: ignore[arg-type]
    assert pool.batches == [[1, 2, 3, 4]]
    raise_if_incomplete(jobs)
    launch(pool, jobs, Stop(jobs))  # type: ignore[arg-type]
    assert len(pool.batches) == 1


def test_batches_have_the_given_size(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, 5)
    pool = Pool(jobs)
    launch(pool, jobs, Stop(jobs), size=2)  # type: ignore[arg-type]
    assert pool.batches == [[0, 1], [2, 3], [4]]


def test_job_whose_process_dies_fails_alone(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path)
    pool = Pool(jobs, dies=lambda job: job.seed == 1)
    launch(pool, jobs, Stop(jobs))  # type: ignore[arg-type]
    assert pool.batches == [[0, 1, 2, 3], [0], [1], [2, 3]]
    statuses = [status_of(job.folder) for job in jobs]
    assert statuses == ["completed", "failed", "completed", "completed"]
    record = json.loads((jobs[1].folder / "run.json").read_text())
    assert record["method"] == "upgrad"
    assert "died" in record["error"]
    with pytest.raises(RunFailed, match=r"1 of 4 jobs did not complete \(1 failed\)"):
        raise_if_incomplete(jobs)


def test_error_of_a_launcher_that_starts_no_job_is_raised(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path)

    class Broken:
        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
            raise OSError("no partition")

    with pytest.raises(OSError, match="no partition"):
        launch(Broken(), jobs, Stop(jobs))  # type: ignore[arg-type]


def test_no_job_is_launched_after_a_signal(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path)
    stop = Stop(jobs)
    pool = Pool(jobs)
    with pytest.raises(SystemExit) as stopped:
        stop.note(signal.SIGTERM, None)  # no running job to wait for
    assert stopped.value.code == 128 + signal.SIGTERM
    with pytest.raises(SystemExit):
        launch(pool, jobs, stop, size=1)  # type: ignore[arg-type]
    assert len(pool.batches) == 1


def test_jobs_can_be_added_to_a_sweep_but_not_changed(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path)
    begin(tmp_path, jobs[:2])
    begin(tmp_path, jobs)
    with pytest.raises(ConfigError, match="has 1 jobs that this command lacks, such as 0"):
        begin(tmp_path, jobs[1:])
    write_job(jobs[3], "completed", config_digest="another")
    with pytest.raises(ConfigError, match="3 has completed with another recipe"):
        begin(tmp_path, jobs)


def test_progress_line_estimates_the_time_left() -> None:
    counts = Counter(completed=2, failed=1, running=1)
    assert line("x", counts, 6, 30.0, 3) == "sweep x: 2 of 6 done, 1 running, 1 failed, about 30 s left"
    # One of the three finished jobs ended after the sweep was resumed.
    assert line("x", counts, 6, 600.0, 1).endswith("about 30 min left")
    assert line("x", counts, 6, 3600.0, 1).endswith("about 3.0 h left")
    assert line("x", counts, 6, 5.0, 0).endswith("1 failed")
    assert line("x", Counter(completed=6), 6, 5.0, 6) == "sweep x: 6 of 6 done, 0 running, 0 failed"
