"""Mean losses over batches and processes."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.losses import Losses
from multitask.gradients.rows import processes
from multitask.gradients.window import Counts, counts_of


class MeanLosses:
    """The mean of each loss over batches, weighted by counts."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None
        self._names: list[str] = []

    def add(self, losses: Mapping[str, Tensor], counts: Counts) -> None:
        """Add a batch's mean losses, scalars or one number per part of the batch, and their counts."""
        stacked = Losses(losses)
        values, device = stacked.values, stacked.values.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        weights = torch.tensor(counts_of(counts, stacked), dtype=dtype, device=device).view_as(values)
        sums = values.to(weights).where(weights > 0, 0.0) * weights
        self._names = stacked.names
        self._sums = sums.sum(0) if self._sums is None else self._sums + sums.sum(0)
        self._counts = weights.sum(0) if self._counts is None else self._counts + weights.sum(0)

    def over_processes(self) -> Tensor:
        """Return the means over all batches and processes, ``[m]``; NaN for losses without labels."""
        assert self._sums is not None
        assert self._counts is not None
        totals = torch.stack([self._sums, self._counts])
        if processes() > 1:
            dist.all_reduce(totals)
        return totals[0] / totals[1]

    def by_name(self) -> dict[str, float]:
        """Return the means by name, without losses that have no labels."""
        if self._sums is None:
            return {}
        values = dict(zip(self._names, self.over_processes().tolist(), strict=True))
        return {name: value for name, value in values.items() if value == value}
