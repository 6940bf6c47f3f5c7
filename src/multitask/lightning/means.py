"""Mean losses over batches and processes."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.losses import Counts, Losses, counts_of
from multitask.gradients.rows import processes
from multitask.lightning.metric_keys import TaskMetrics
from multitask.metrics.precision import widest_float


class MeanLosses:
    """The mean of each loss over batches, weighted by counts."""

    def __init__(self) -> None:
        self._totals: Tensor | None = None
        """Sums of losses times counts, and of counts, ``[2, m]``."""
        self._names: list[str] = []

    def add(self, losses: Mapping[str, Tensor], counts: Counts) -> None:
        """Add a batch's mean losses, scalars or one number per part of the batch, and their counts."""
        stacked = Losses(losses)
        values, device = stacked.values, stacked.values.device
        weights = torch.tensor(counts_of(counts, stacked), dtype=widest_float(device), device=device)
        weights = weights.view_as(values)
        sums = values.to(weights).where(weights > 0, 0.0) * weights
        totals = torch.stack([sums.sum(0), weights.sum(0)])
        self._names = stacked.names
        self._totals = totals if self._totals is None else self._totals + totals

    def over_processes(self) -> Tensor:
        """Return the means over all batches and processes, ``[m]``; NaN for losses without labels."""
        assert self._totals is not None
        totals = self._totals.clone()
        if processes() > 1:
            dist.all_reduce(totals)
        return totals[0] / totals[1]

    def metrics(self) -> TaskMetrics:
        """Return the means by name, as the metric ``loss``, without losses that have no labels."""
        if self._totals is None:
            return {}
        means = zip(self._names, self.over_processes().tolist(), strict=True)
        return {(name, "loss"): mean for name, mean in means if mean == mean}
