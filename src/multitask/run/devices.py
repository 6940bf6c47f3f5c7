"""The devices of a job: the number of processes, and one GPU for each job that runs in parallel."""

import itertools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig

from multitask import system

_GPU = ("gpu", "cuda", "auto")
# The lock of this process's GPU, held until the process ends, as long as CUDA holds the GPU.
_held: TextIO | None = None


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def parallel_jobs(accelerator: str) -> int:
    """Return how many jobs this machine runs in parallel: one per GPU, or one per core without GPUs."""
    found = len(gpus()) if accelerator in _GPU else 0
    return found or system.cores()


def gpus_of_job(accelerator: str, devices: int | str = 1, **others: Any) -> int | None:
    """Return how many GPUs a job with these trainer keys requests from a scheduler; ``None`` for a job on CPUs."""
    if accelerator not in ("gpu", "cuda"):
        return None
    return devices if isinstance(devices, int) and devices > 0 else 1


def processes(config: DictConfig) -> int:
    """Return how many processes train, according to the config; ``devices=auto`` counts as 1."""
    devices = config.trainer.devices
    if isinstance(devices, str):
        devices = (
            int(devices) if devices.isdecimal() else devices.strip("[]").split(",") if "," in devices else 1
        )
    count = devices if isinstance(devices, int) else len(devices)
    return max(1, count) * int(config.trainer.num_nodes)


def several_processes(config: DictConfig) -> bool:
    """Return whether more than one process trains."""
    return config.trainer.devices not in (1, "1", "auto") or config.trainer.num_nodes > 1


def take_gpu(config: DictConfig) -> None:
    """Reserve a GPU that no other job of this machine uses, if the machine has several and the run uses one.

    If there are more jobs than GPUs, the GPUs are shared evenly.
    """
    global _held
    wanted: Any = config.trainer.get("devices", 1)
    if _held is not None or config.trainer.get("accelerator") not in _GPU or wanted != 1:
        return
    names = gpus()
    if len(names) < 2:
        return
    folder = Path(tempfile.gettempdir()) / f"multitask-gpus-{system.user()}"
    folder.mkdir(exist_ok=True)
    for share, name in ((share, name) for share in itertools.count() for name in names):
        file = (folder / f"{name.replace('/', '_')}.{share}").open("a", encoding="utf-8")
        if system.lock(file) is False:
            file.close()
            continue
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        _held = file
        return
