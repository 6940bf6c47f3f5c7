"""Pooling of a dense metric over the pixels of a whole data set."""

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

POOLINGS = ("pixels", "batches")


class Pooled(Metric):
    """A figure that is a function of a vector of sums over pixels.

    ``pooling="pixels"`` adds the sums of all pixels and takes the figure once, so that neither batch size
    nor the number of processes matters. ``pooling="batches"`` takes the figure of each batch and averages
    these, every batch counting the same, as the older multi-task code does; a batch without a valid pixel
    is left out.

    ``sums``: a name for what is summed, the same in two metrics only where both sum the same; ``size``:
    length of the vector of sums. Without any valid pixel the figure is NaN. Raises ``ValueError`` for
    another ``pooling``.
    """

    full_state_update = False

    def __init__(self, sums: str, size: int, pooling: str = "pixels") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"tasks.*.metrics.*.pooling is one of {', '.join(POOLINGS)}, not {pooling!r}.")
        self.pooling = pooling
        # MetricCollection takes metrics for one and the same when states of the same name were equal after
        # the first batch, as those of two thresholds easily are: the name has to tell them apart.
        self._state = sums if pooling == "pixels" else f"{type(self).__name__}_{sums}"
        self.add_state(
            self._state,
            torch.zeros(size if pooling == "pixels" else 2, dtype=torch.float64),
            dist_reduce_fx="sum",
        )

    @abstractmethod
    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Sums over the valid pixels of one batch, ``[size]``."""

    @abstractmethod
    def figure(self, sums: Tensor) -> Tensor:
        """The figure that belongs to some sums; NaN where no pixel was valid."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take in one batch."""
        state: Tensor = getattr(self, self._state)
        sums = self.count(prediction.detach(), target.detach()).to(state)
        if self.pooling == "batches":
            figure = self.figure(sums)
            known = ~figure.isnan()
            sums = torch.stack([figure.where(known, 0.0), known.to(figure)])
        setattr(self, self._state, state + sums)

    def compute(self) -> Tensor:
        """The figure of everything taken in, a scalar."""
        state: Tensor = getattr(self, self._state)
        return (self.figure(state) if self.pooling == "pixels" else state[0] / state[1]).float()


def same_shape(name: str, prediction: Tensor, target: Tensor) -> None:
    """Raise ``ValueError`` unless both shapes are the same: broadcasting would give a wrong figure."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"{name} got predictions of shape {list(prediction.shape)} for targets of shape "
            f"{list(target.shape)}; make tasks.*.head give the shape of the target."
        )
