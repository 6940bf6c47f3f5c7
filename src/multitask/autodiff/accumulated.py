"""Rows added up over micro-batches and processes: the Jacobian of one large batch."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multitask.autodiff.gradients import Cotangents, Engine, TaskGradients
from multitask.autodiff.rows import RowGradients, split_like, written
from multitask.autodiff.sharded import Reduction


class AccumulatedRows(Engine):
    """One call a micro-batch, after :meth:`begin`; the last one returns the gradients of all.

    On several processes each row of the last micro-batch begins its way to the others as soon as it is there,
    while the next one is differentiated.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._scratch: Tensor | None = None
        self._missing = 0
        self._begun = False

    def begin(self, micro_batches: int) -> None:
        """Begin a new sum.

        Args:
            micro_batches: How many calls it has.
        """
        self._missing = micro_batches
        self._begun = False

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        cotangents: Cotangents,
        parameters: Sequence[nn.Parameter],
        direct: Sequence[Tensor | None] = (),
    ) -> TaskGradients:
        """Add this micro-batch's rows and return the sum so far; see :class:`Engine`."""
        self._missing -= 1
        rows = self._allocate(len(cotangents), parameters)
        together = dist.is_initialized() and dist.get_world_size() > 1 and self._missing == 0
        reduction = Reduction(rows, parameters) if together else None
        if self._begun:
            if (
                self._scratch is None
                or self._scratch.shape != rows[0].shape
                or self._scratch.dtype != rows.dtype
            ):
                self._scratch = torch.zeros_like(rows[0])  # the padding too
            target = self._scratch.expand_as(rows)
        else:
            target = rows
        views = (split_like(row, parameters) for row in target)
        for i in written(views, outputs, cotangents, parameters, direct):
            if self._begun:
                rows[i] += target[i]
            if reduction is not None:
                reduction.send(i)
        self._begun = True
        if reduction is not None:
            return reduction.gradients()
        return RowGradients(rows[:, : sum(p.numel() for p in parameters)], parameters)

    def _allocate(self, k: int, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the buffer of the sum, with zeros beyond n so that each process gets a slice as wide."""
        n = sum(p.numel() for p in parameters)
        world = dist.get_world_size() if dist.is_initialized() else 1
        shape = (k, -(-n // world) * world)
        like = parameters[0]
        old = self._sum
        if old is None or old.shape != shape or old.dtype != like.dtype or old.device != like.device:
            assert not self._begun, "the rows changed within a window"
            self._sum = torch.zeros(shape, dtype=like.dtype, device=like.device)
            self._scratch = None
        assert self._sum is not None
        return self._sum
