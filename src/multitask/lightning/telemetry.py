"""Per-step values, accumulated on the device until they are logged."""

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from multitask.lightning.module import MultiLossModule


class Telemetry:
    """Means over a logging interval, computed without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, list[int]] = {}
        self._names: dict[str, list[str]] = {}

    def add(
        self, key: str, values: Tensor, names: Sequence[str], present: Sequence[int] | None = None
    ) -> None:
        """Add one step's values, logged as ``<key>/<name>``.

        Args:
            key: The first part of the logged keys.
            values: One value for each present name.
            names: The names, the same in every call.
            present: The indices of the names that have a value in this step; all by default.
        """
        if key not in self._sums:
            self._sums[key] = torch.zeros(len(names), dtype=values.dtype, device=values.device)
            self._counts[key] = [0] * len(names)
            self._names[key] = list(names)
        self._sums[key] = self._sums[key].to(values.device)  # those of a checkpoint are on the CPU
        present = range(len(names)) if present is None else present
        if len(present) == len(names):
            self._sums[key] += values
        else:
            self._sums[key][list(present)] += values
        for i in present:
            self._counts[key][i] += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last flush."""
        return deepcopy({"sums": self._sums, "counts": self._counts, "names": self._names})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums."""
        self._sums, self._counts, self._names = (deepcopy(state[key]) for key in ("sums", "counts", "names"))

    def flush(self, module: "MultiLossModule") -> None:
        """Log the means since the last call, and the values of the weighting."""
        if not self._sums:
            return
        metrics: dict[str, float] = {}
        for key, total in self._sums.items():
            sums = zip(self._names[key], total.tolist(), self._counts[key], strict=True)
            metrics |= {f"{key}/{name}": value / count for name, value, count in sums if count}
        for key, values in module.weighting.logged_values().items():
            by_task = zip(module.names, values.tolist(), strict=True)
            metrics |= {f"weighting/{key}/{name}": value for name, value in by_task}
        self._sums, self._counts, self._names = {}, {}, {}
        metrics["epoch"] = module.current_epoch
        for logger in module.loggers:
            logger.log_metrics(metrics, step=max(0, module.trainer.global_step - 1))
