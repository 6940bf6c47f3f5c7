"""The conditions of a measurement: machine, versions, threads, date and commit."""

import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from multitask.run.record import git_commit, package_versions
from multitask.system import cores


def conditions(root: Path, device: str) -> dict[str, Any]:
    """Return the conditions of a measurement."""
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchjd": package_versions().get("torchjd", ""),
        "date": date.today().isoformat(),
        "commit": git_commit(root),
    }


def sentence(conditions: dict[str, Any]) -> str:
    """Return the conditions as one sentence."""
    return (
        "Measured on {date} at commit {commit:.12} on {processor} ({cores} cores, {threads} in use) with torch "
        "{torch} and torchjd {torchjd}."
    ).format(**conditions | {"commit": str(conditions["commit"])})


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
