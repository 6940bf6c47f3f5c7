"""Pooling of dense metrics over the pixels of a data set."""

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

POOLINGS = ("pixels", "batches")


class Pooled(Metric):
    """A metric that is a function of a vector of sums over pixels.

    ``pooling="pixels"`` computes the metric once from the sums over all pixels, independently of batch size and number
    of processes. ``pooling="batches"`` averages the metrics of the batches with equal weight, as older multi-task code
    does, excluding batches without a valid pixel.

    ``sums``: a name for the sums, which two metrics may share only if their sums are the same; ``size``: length of the
    vector of sums. Without a valid pixel the metric is NaN. Raises ``ValueError`` for an unknown ``pooling``.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, sums: str, size: int, pooling: str = "pixels") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"tasks.*.metrics.*.pooling is one of {', '.join(POOLINGS)}, not {pooling!r}.")
        self.pooling = pooling
        # MetricCollection merges metrics whose states of the same name are equal after the first batch, which can
        # happen with two thresholds: the name has to distinguish them.
        self._state = sums if pooling == "pixels" else f"{type(self).__name__}_{sums}"
        size = size if pooling == "pixels" else 2
        self.add_state(self._state, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the sums over the valid pixels of one batch, ``[size]``."""

    def value(self, sums: Tensor) -> Tensor:
        """Return the metric given the sums, by default the mean ``sums[0] / sums[1]``; NaN if no pixel is valid."""
        return sums[0] / sums[1]

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        state: Tensor = getattr(self, self._state)
        sums = self.count(prediction.detach(), target.detach()).to(state)
        if self.pooling == "batches":
            value = self.value(sums)
            known = ~value.isnan()
            sums = torch.stack([value.where(known, 0.0), known.to(value)])
        setattr(self, self._state, state + sums)

    def compute(self) -> Tensor:
        """Return the metric of all batches, a scalar."""
        state: Tensor = getattr(self, self._state)
        return (self.value(state) if self.pooling == "pixels" else state[0] / state[1]).float()
