"""Factors of one weight's rows: inputs and output gradients of its operation, over micro-batches."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multitask.gradients.graph import Node
from multitask.gradients.kernels import entries
from multitask.gradients.operands import Operand
from multitask.gradients.rows import multiplied

# The cost of writing, copying and reading a number, and of sending one, in multiplications of a matrix product.
_MEMORY, _SENT = 10, 100


class Layer(NamedTuple):
    """An operation in the graph, and the parameters whose rows are products of its inputs and output gradients."""

    operand: Operand
    node: Node
    parameters: list[Tensor]
    """The weight and, where it has one, the bias."""


class Factors:
    """The factors ``D_i`` and ``A`` of k rows ``D_iᵀ A``, concatenated over micro-batches.

    Args:
        operand: The operation in the first micro-batch.
        parameters: The weight and the bias, if any.
        memory: For the output gradients, from an earlier step.
    """

    def __init__(self, operand: Operand, parameters: Sequence[Tensor], memory: Tensor | None = None) -> None:
        self.parameters = parameters
        self.operand = operand
        """``A`` of all micro-batches so far."""
        self.positions = 0
        """The number of positions so far."""
        self.memory = memory
        """Memory of the output gradients, ``[k, positions or more, q]``; those of a single batch may lie elsewhere."""

    def begin(self, operand: Operand, weights: Sequence[float], like: Tensor, alone: bool) -> None:
        """Begin a micro-batch with its operation; ``like`` has the output gradients' dtype and device.

        ``weights`` and ``alone`` are those of its :class:`MicroBatch`.
        """
        self._added, self._weights, self._like, self._alone = operand, weights, like, alone
        self._single: Tensor | None = None
        self._room: Tensor | None = None
        self._missing = set(range(len(weights)))

    def take(self, rows: Sequence[int], gradients: Tensor) -> Mapping[Tensor, Tensor]:
        """Keep output gradients; see :data:`Place`."""
        D = self._added.matrix(gradients)
        if self._alone and 1 < len(D) == len(self._weights):
            self._single = D
        else:
            room = self._new_room()
            for row, of_row in zip(rows, D, strict=True):
                room[row].copy_(of_row)
        self._missing -= set(rows)
        return {}

    def end(self, factors: Sequence[float] | None) -> None:
        """Add the micro-batch, and multiply the sums by ``factors``, which only the last one of several processes has.

        A further micro-batch without a gradient is only added if it was announced to other processes.
        """
        stored = self._added.stored
        if len(self._missing) == len(self._weights):
            if self.positions and factors is None:
                return
            stored = torch.zeros_like(stored)  # no gradient: the inputs may be NaN
        elif not self._alone:
            stored = stored.clone()  # an input of the network may be overwritten before the step ends
        if self._single is None:
            room = self._new_room()
            for row in self._missing:
                room[row] = 0.0
            multiplied(room, self._weights)
        if self.positions:
            stored = torch.cat([self.operand.stored, stored])
        self.operand = self._added = self._added.on(stored)
        self.positions = self.operand.positions
        if factors is not None:
            multiplied(self.gradients, factors)

    @property
    def gradients(self) -> Tensor:
        """The output gradients of all micro-batches so far, ``[k, positions, q]``."""
        if self._single is not None:
            return self._single
        assert self.memory is not None
        return self.memory[:, : self.positions]

    def chosen(self, rows: Sequence[int]) -> Tensor:
        """Return the output gradients of some rows."""
        D = self.gradients
        return (D if len(rows) == len(D) else D[list(rows)]).contiguous()

    def formed(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield row, parameter and gradient of all rows."""
        each = self.operand.gradients(self.gradients.contiguous(), self.parameters)
        for parameter, rows in zip(self.parameters, each, strict=True):
            for row, gradient in enumerate(rows):
                yield row, parameter, gradient

    def _new_room(self) -> Tensor:
        """Return memory for the output gradients of the micro-batch, at first with arbitrary content."""
        if self._room is None:
            old, before, k, q = self.memory, self.positions, len(self._weights), self._added.q
            end = before + self._added.positions
            known = None if old is None else (old.shape[0], old.shape[2], old.dtype, old.device)
            if old is None or known != (k, q, self._like.dtype, self._like.device) or old.shape[1] < end:
                self.memory = self._like.new_empty(k, end, q)
                if old is not None and before:
                    self.memory[:, :before] = old[:, :before]
            assert self.memory is not None
            self._room = self.memory[:, before:end]
        return self._room


def is_cheaper(operand: Operand, k: int, positions: int, micro_batches: int = 1, processes: int = 1) -> bool:
    """Return whether a layer's factors take fewer operations than its k rows, and over micro-batches no more memory.

    Args:
        operand: The layer.
        k: The number of rows.
        positions: The number of positions of all micro-batches and processes.
        micro_batches: The number of times that rows would be added up.
        processes: The number of processes that share the work, and exchange rows or factors.
    """
    if micro_batches > 1 and positions > operand.p:
        return False
    n, p, q, others = positions / processes, operand.p, operand.q, processes - 1
    row = n * p * q if operand.dense else 0.0
    gramian = entries(positions) * (p + k * q / processes) if operand.dense else 0.0
    size = k * p * q
    rows = k * row + (k + 1) * size / processes + 3 * _MEMORY * size * micro_batches
    rows += _SENT * size * others / processes
    factors = gramian + k * k * n * q + row + _MEMORY * (positions**2 + positions * p + 3 * k * n * q)
    width = operand.stored.shape[1:].numel() / operand.each
    factors += _SENT * n * (width + k * q / processes) * others
    return factors < rows
