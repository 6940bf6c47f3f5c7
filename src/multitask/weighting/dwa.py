from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.weighting.base import Layout, Scalarization


class DWA(Scalarization):
    """Dynamic weight average: Σ w L with w = k softmax(r / temperature).

    r is the ratio of a task's mean losses in the last two epochs, one until the task has completed two. Larger
    temperatures, all above zero, give more equal weights.

    "End-to-End Multi-Task Learning with Attention" (Liu, Johns & Davison, 2019).
    """

    linear = True  # the weights depend on earlier epochs only
    per_task: ClassVar[dict[str, Layout]] = dict.fromkeys(("sums", "counts", "older", "newer"), "vector")
    sums: Tensor
    counts: Tensor
    older: Tensor
    newer: Tensor

    def __init__(self, tasks: Sequence[str], temperature: float = 2.0) -> None:
        if temperature <= 0:
            raise ValueError(f"weighting.temperature={temperature} must be positive.")
        super().__init__()
        self.temperature = temperature
        for name, start in (("sums", 0.0), ("counts", 0.0), ("older", torch.nan), ("newer", torch.nan)):
            self.keep(name, torch.full((len(tasks),), start))

    def forward(self, losses: Tensor) -> Tensor:
        ratios = torch.nan_to_num(self.newer / self.older, nan=1.0)
        return len(losses) * (torch.softmax(ratios / self.temperature, 0) * losses).sum()

    def observe(self, losses: Tensor) -> None:
        self.sums = self.sums + losses.detach().to(self.sums)
        self.counts = self.counts + 1

    def on_epoch_end(self) -> None:
        """End the epoch for every task that had a loss in it."""
        occurred = self.counts > 0
        self.older = torch.where(occurred, self.newer, self.older)
        self.newer = torch.where(occurred, self.sums / self.counts, self.newer)
        self.sums = torch.zeros_like(self.sums)
        self.counts = torch.zeros_like(self.counts)
