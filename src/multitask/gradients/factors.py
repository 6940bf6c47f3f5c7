"""Factors of one weight's rows: inputs and output gradients of its operation, over micro-batches."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multitask.gradients.blocks import ProductBlock
from multitask.gradients.graph import Node
from multitask.gradients.kernels import entries
from multitask.gradients.operands import Operand
from multitask.gradients.rows import RowGradients, StoredGradients, multiplied, numbers
from multitask.gradients.taps import Place

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
        parameters: The weight and the bias, if any.
        memory: For the output gradients, from an earlier step.
    """

    def __init__(self, parameters: Sequence[Tensor], memory: Tensor | None = None) -> None:
        self.parameters = parameters
        self.operand: Operand | None = None
        """``A`` of all micro-batches so far."""
        self.memory = memory
        """Memory of the output gradients, ``[k, positions or more, q]``; those of a single batch may lie elsewhere."""
        self._single: Tensor | None = None

    @property
    def positions(self) -> int:
        """The number of positions so far."""
        return 0 if self.operand is None else self.operand.positions

    def goes_with(self, operand: Operand, parameters: Sequence[Tensor]) -> bool:
        """Return whether an operation's positions can be appended."""
        same = [id(p) for p in parameters] == [id(p) for p in self.parameters]
        return same and (self.operand is None or self.operand.kind == operand.kind)

    def room(self, k: int, operand: Operand, like: Tensor) -> Tensor:
        """Return memory for the output gradients of another operand, with arbitrary content."""
        old, before = self.memory, self.positions
        end, q = before + operand.positions, operand.q
        known = None if old is None else (old.shape[0], old.shape[2], old.dtype, old.device)
        if old is None or known != (k, q, like.dtype, like.device) or old.shape[1] < end:
            self.memory = like.new_empty(k, end, q)
            if old is not None and before:
                self.memory[:, :before] = old[:, :before]
        assert self.memory is not None
        return self.memory[:, before:end]

    def append(self, operand: Operand, gradients: Tensor | None = None) -> None:
        """Add a micro-batch, with its gradients if they do not lie in the :meth:`room`."""
        if self.operand is not None:
            operand = operand.on(torch.cat([self.operand.stored, operand.stored]))
        self.operand, self._single = operand, gradients

    @property
    def gradients(self) -> Tensor:
        """The output gradients of all micro-batches so far, ``[k, positions, q]``."""
        if self._single is not None:
            return self._single
        assert self.memory is not None
        return self.memory[:, : self.positions]

    def block(self, rows: Sequence[int], factors: Sequence[float], like: Tensor) -> StoredGradients:
        """Return some rows, each times a factor; without an operand, zeros like ``like``."""
        if self.operand is None:
            return RowGradients(like.new_zeros(len(rows), numbers(self.parameters)), self.parameters)
        return ProductBlock(self.operand, multiplied(self.chosen(rows), factors), self.parameters)

    def chosen(self, rows: Sequence[int]) -> Tensor:
        """Return the output gradients of some rows."""
        D = self.gradients
        return (D if len(rows) == len(D) else D[list(rows)]).contiguous()

    def formed(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield row, parameter and gradient of all rows."""
        if self.operand is not None:
            rows = range(len(self.gradients))
            each = ProductBlock(self.operand, self.chosen(rows), self.parameters).formed()
            for parameter, of_parameter in zip(self.parameters, each, strict=True):
                for row, gradient in zip(rows, of_parameter, strict=True):
                    yield row, parameter, gradient


class Kept(Place):
    """An operation whose output gradients are kept.

    Args:
        operand: The operation.
        factors: Where they are kept.
        weights: The weight of the micro-batch in the sum of each row.
        like: A tensor of their dtype and device.
        alone: Whether the micro-batch is the whole step, so that nothing has to be copied.
    """

    def __init__(
        self, operand: Operand, factors: Factors, weights: Sequence[float], like: Tensor, alone: bool
    ) -> None:
        self._operand = operand
        self._factors = factors
        self._weights = weights
        self._like = like
        self._alone = alone
        self._room: Tensor | None = None
        self._single: Tensor | None = None
        self._missing = set(range(len(weights)))

    def take(self, rows: Sequence[int], gradients: Tensor) -> Sequence[Tensor]:
        """Keep the gradients of rows, whose parameters' rows are not formed."""
        D = self._operand.matrix(gradients)
        if self._alone and 1 < len(D) == len(self._weights):
            self._single = D
        else:
            for row, of_row in zip(rows, D, strict=True):
                self._get_room()[row].copy_(of_row)
        self._missing -= set(rows)
        return []

    def end(self, announced: bool) -> None:
        """Add the micro-batch to the factors; without a gradient, only if it was ``announced`` to other processes."""
        stored = self._operand.stored
        if len(self._missing) == len(self._weights):
            if not announced:
                return
            stored = torch.zeros_like(stored)  # no gradient: the inputs may be NaN
        elif not self._alone:
            stored = stored.clone()  # an input of the network may be overwritten before the step ends
        if self._single is None:
            room = self._get_room()
            for row in self._missing:
                room[row] = 0.0
            multiplied(room, self._weights)
        self._factors.append(self._operand.on(stored), self._single)

    def _get_room(self) -> Tensor:
        if self._room is None:
            self._room = self._factors.room(len(self._weights), self._operand, self._like)
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
