"""Running means of rows over micro-batches and processes: the Jacobian of one large batch."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.losses import Pulls
from multitask.gradients.rows import RowGradients, numbers, row_like, split_like, write
from multitask.gradients.sharded import Reduction
from multitask.gradients.task_gradients import TaskGradients


class AccumulatedRows:
    """The mean over micro-batches of each of k rows, weighted by counts, in a buffer kept between steps."""

    def __init__(self) -> None:
        self._parameters: list[Tensor] = []
        self._rows: Tensor | None = None
        self._scratch: Tensor | None = None
        self._begun = False

    def clear(self) -> None:
        """Start a new mean."""
        self._begun = False

    def add(
        self,
        k: int,
        pulls: Mapping[int, tuple[Pulls, int]],
        parameters: Sequence[Tensor],
        shares: Sequence[float],
        parts: Sequence[float] | None = None,
    ) -> TaskGradients:
        """Add a micro-batch, and return the mean so far.

        Args:
            k: The number of rows.
            pulls: For each row that this micro-batch has, the backward passes and the number among them.
            parameters: The shared parameters, n numbers in all.
            shares: The part of this micro-batch in each row's mean.
            parts: At the last micro-batch on several processes, the part of this process in each row's mean over
                all of them. Each row is sent as soon as it is complete, while the next one is differentiated.
        """
        rows = self._allocate(k, parameters)
        reduction = None if parts is None else Reduction(rows, parameters)
        if self._begun and (self._scratch is None or self._scratch.shape != rows[0].shape):
            self._scratch = torch.zeros_like(rows[0])  # the padding too
        for row in range(k):
            if row in pulls:
                passes, number = pulls[row]
                target = self._scratch if self._begun else rows[row]
                assert target is not None
                write(split_like(target, parameters), passes.pass_of(number)(parameters))
                if self._begun:
                    rows[row].lerp_(target, shares[row])
            elif not self._begun:
                rows[row].zero_()
            if reduction is not None and parts is not None:
                rows[row] *= parts[row]
                reduction.send(row)
        self._begun = True
        if reduction is not None:
            return reduction.gradients()
        return RowGradients(rows[:, : numbers(parameters)], parameters)

    def put(self, row: int, parameter: Tensor, gradient: Tensor) -> None:
        """Write a gradient into the mean so far: that of a parameter which has become shared since."""
        assert self._rows is not None
        place = next(i for i, p in enumerate(self._parameters) if p is parameter)
        write([split_like(self._rows[row], self._parameters)[place]], [gradient])

    def lay_out(self, parameters: Sequence[Tensor]) -> None:
        """Lay the mean so far out over more parameters; the new ones have gradients of zero."""
        if not self._begun or self._rows is None or _same(parameters, self._parameters):
            return
        old, before = self._rows, self._parameters
        self._begun, self._rows = False, None
        rows = self._allocate(len(old), parameters)
        place = {id(p): i for i, p in enumerate(parameters)}
        for new_row, old_row in zip(rows, old, strict=True):
            views = split_like(new_row, parameters)
            for p, view in zip(before, split_like(old_row, before), strict=True):
                views[place[id(p)]].copy_(view)
        self._begun = True

    def _allocate(self, k: int, parameters: Sequence[Tensor]) -> Tensor:
        """Return the buffer of the mean, with zeros beyond n so that each process gets a slice of equal width."""
        n = numbers(parameters)
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        shape = (k, -(-n // world) * world)
        like = row_like(parameters)
        old = self._rows
        if old is None or old.shape != shape or old.dtype != like.dtype or old.device != like.device:
            assert not self._begun, "the rows changed within a step"
            old = self._rows = like.new_zeros(shape)
            self._scratch = None
        elif not self._begun and n < shape[1]:
            old[:, n:] = 0.0
            if self._scratch is not None:
                self._scratch[n:] = 0.0
        self._parameters = list(parameters)
        return old


def _same(parameters: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(parameters) == len(others) and all(p is o for p, o in zip(parameters, others, strict=True))
