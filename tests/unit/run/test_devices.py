"""Parallel jobs are distributed over the available GPUs."""

import multiprocessing
import os
from collections import Counter
from multiprocessing.connection import Connection

import pytest
from omegaconf import OmegaConf

from multitask.run import devices
from multitask.run.devices import gpus, gpus_of_job, parallel_jobs, take_gpu

GPU = {"trainer": {"accelerator": "gpu", "devices": 1}}


def _job(connection: Connection) -> None:
    take_gpu(OmegaConf.create(GPU))
    taken = os.environ["CUDA_VISIBLE_DEVICES"]
    take_gpu(OmegaConf.create(GPU))  # the next job of the process
    assert os.environ["CUDA_VISIBLE_DEVICES"] == taken
    connection.send(taken)
    connection.recv()


@pytest.fixture(autouse=True)
def _three_gpus(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-1a,MIG-GPU-1/2/0")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(devices, "_held", None)


def test_parallel_jobs_share_the_gpus_evenly() -> None:
    context = multiprocessing.get_context("fork")
    jobs = []
    for _ in range(5):
        here, there = context.Pipe()
        process = context.Process(target=_job, args=(there,))
        process.start()
        jobs.append((process, here, here.recv()))
    assert sorted(Counter(gpu for *_, gpu in jobs).values()) == [1, 2, 2]
    process, _, freed = jobs[0]
    process.kill()
    process.join()
    here, there = context.Pipe()
    again = context.Process(target=_job, args=(there,))
    again.start()
    assert here.recv() == freed
    for process, pipe, _ in [(again, here, ""), *jobs[1:]]:
        pipe.send(None)
        process.join()
        assert process.exitcode == 0


@pytest.mark.parametrize(
    ("visible", "trainer"),
    [
        ("3", {"accelerator": "gpu", "devices": 1}),
        ("0,1", {"accelerator": "cpu", "devices": 1}),
        ("0,1", {"accelerator": "gpu", "devices": 2}),
    ],
)
def test_run_not_on_a_single_gpu_keeps_all_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, trainer: dict[str, object]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    take_gpu(OmegaConf.create({"trainer": trainer}))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_number_of_parallel_jobs_is_that_of_gpus_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus() == ["0", "GPU-1a", "MIG-GPU-1/2/0"]
    assert parallel_jobs("gpu") == 3
    cores = len(os.sched_getaffinity(0))
    assert parallel_jobs("cpu") == cores
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert parallel_jobs("auto") == cores


def test_gpus_requested_per_job() -> None:
    assert gpus_of_job("cpu") is None
    assert gpus_of_job("gpu", 1, max_epochs=3) == 1
    assert gpus_of_job("gpu", 4) == 4
    assert gpus_of_job("cuda", "auto") == 1
