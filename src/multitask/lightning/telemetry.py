"""Per-step values, accumulated on the device until they are logged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from multitask.lightning.module import MultiLossModule


class Telemetry:
    """Means over a logging interval, without a call a number and step and without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, list[int]] = {}
        self._names: dict[str, list[str]] = {}

    def add(
        self, key: str, values: Tensor, names: Sequence[str], present: Sequence[int] | None = None
    ) -> None:
        """Add one step's numbers under ``key``.

        Args:
            key: The first part of the logged names.
            values: One number for each present name.
            names: The last parts of the logged names, the same at every call.
            present: Which of the names have a number in this step; all by default.
        """
        if key not in self._sums:
            self._sums[key] = torch.zeros(len(names), dtype=values.dtype, device=values.device)
            self._counts[key] = [0] * len(names)
            self._names[key] = list(names)
        self._sums[key] = self._sums[key].to(values.device)  # those of a checkpoint are on the CPU
        if present is None or len(present) == len(names):
            self._sums[key] += values
            self._counts[key] = [count + 1 for count in self._counts[key]]
        else:
            self._sums[key][list(present)] += values
            for i in present:
                self._counts[key][i] += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what has been added since the last flush."""
        return {
            "sums": dict(self._sums),
            "counts": {key: list(counts) for key, counts in self._counts.items()},
            "names": {key: list(names) for key, names in self._names.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what had been added."""
        self._sums = dict(state["sums"])
        self._counts = {key: list(counts) for key, counts in state["counts"].items()}
        self._names = {key: list(names) for key, names in state["names"].items()}

    def flush(self, module: "MultiLossModule") -> None:
        """Hand the means since the last call to every logger and forget them."""
        if not self._sums:
            return
        metrics: dict[str, float] = {}
        for key, total in self._sums.items():
            numbers = zip(self._names[key], total.tolist(), self._counts[key], strict=True)
            metrics |= {f"{key}/{name}": value / count for name, value, count in numbers if count}
        for key, values in module.weighting.figures().items():
            of_tasks = zip(module.names, values.tolist(), strict=True)
            metrics |= {f"weighting/{key}/{name}": value for name, value in of_tasks}
        self._sums.clear()
        self._counts.clear()
        self._names.clear()
        metrics["epoch"] = module.current_epoch
        for logger in module.loggers:
            logger.log_metrics(metrics, step=max(0, module.trainer.global_step - 1))
