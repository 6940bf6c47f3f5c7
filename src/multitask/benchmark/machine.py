"""The machine and time of a measurement."""

import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from multitask.run.record import git_commit, package_versions
from multitask.system import cores


def facts(root: Path, device: str) -> dict[str, Any]:
    """Return what tells one measurement from another: machine, versions, threads, date and commit.

    Args:
        root: The repository.
        device: ``cpu`` or ``cuda``.
    """
    versions = package_versions()
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchjd": versions.get("torchjd", ""),
        "date": date.today().isoformat(),
        "commit": git_commit(root),
    }


def sentence(known: dict[str, Any]) -> str:
    """Return the facts as one sentence."""
    return (
        f"Measured on {known['date']} at commit {str(known['commit'])[:12]} on {known['processor']} "
        f"({known['cores']} cores, {known['threads']} in use) with torch {known['torch']} and torchjd "
        f"{known['torchjd']}."
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
