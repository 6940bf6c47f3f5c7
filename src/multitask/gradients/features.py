"""Approximate task gradients: with respect to shared features instead of shared parameters."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.batched import is_hooked
from multitask.gradients.losses import Pulls, gradients_at
from multitask.gradients.rows import (
    RowGradients,
    Rows,
    StoredGradients,
    add_to_gradients,
    dense,
    multiplied,
    numbers,
    processes,
    row_like,
    split_like,
)
from multitask.gradients.task_gradients import MicroBatch

Frontier = dict[GradientEdge, torch.Size]
"""The edges into the shared graph of a micro-batch with the shapes of the gradients there."""


class _FeatureGradients(RowGradients):
    """Gradients of the losses at the features.

    Their Gramian only bounds that of the parameters (Sener and Koltun, Multi-Task Learning as Multi-Objective
    Optimization, 2018, MGDA-UB); the combined gradient is exact for its weights. Examples have separate features, so
    that the Gramians of micro-batches and processes add up.
    """

    def __init__(self, jacobian: Tensor, frontiers: Sequence[Frontier], parameters: Sequence[Tensor]) -> None:
        super().__init__(jacobian, parameters)
        self._frontiers = frontiers

    def gramian(self) -> Tensor:
        gramian = super().gramian()
        if processes() > 1:
            dist.all_reduce(gramian)
        return gramian

    def combine(self, weights: Tensor) -> None:
        self.assign(weights.to(self._jacobian) @ self._jacobian)

    def assign(self, vector: Tensor) -> None:
        """Propagate a feature gradient, shape ``[f]``, to the parameters."""
        total = row_like(self.parameters).new_zeros(numbers(self.parameters))
        views = split_like(total, self.parameters)
        for frontier in self._frontiers:
            sizes = [shape.numel() for shape in frontier.values()]
            *pieces, vector = vector.split([*sizes, len(vector) - sum(sizes)])
            seeds = [piece.view(shape) for piece, shape in zip(pieces, frontier.values(), strict=True)]
            gradients = gradients_at(list(frontier), seeds, self.parameters)
            for view, gradient in zip(views, gradients, strict=True):
                if gradient is not None:
                    view += dense(gradient)
        if processes() > 1:
            dist.all_reduce(total)
        add_to_gradients(self.parameters, views)


class Features(Rows):
    """Approximate: one backward pass through the shared graph for any number of losses."""

    def clear(self) -> None:
        self._frontiers: list[Frontier] = []
        self._sums: Tensor | None = None

    def lay_out(self, parameters: Sequence[Tensor], moved: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        """Reject parameters that become shared within a step, whose gradients have no columns here."""
        if list(moved):
            raise _direct()

    def add(self, batch: MicroBatch) -> None:
        """Add a micro-batch; see :class:`Engine`.

        Raises:
            ValueError: If a loss reaches a shared parameter directly, as a penalty does, or a hook changes the
                gradients at the features.
        """
        self._parameters = list(batch.parameters)
        sums = (
            row_like(batch.parameters).new_zeros(len(batch.weights), 0) if self._sums is None else self._sums
        )
        columns = self._pull(batch.pulls, batch.weights) if batch.pulls.rows and batch.parameters else []
        self._sums = multiplied(torch.cat([sums, *columns], 1), batch.factors or [1.0])

    def gradients(self, rows: Sequence[int], factors: Sequence[float]) -> StoredGradients:
        assert self._sums is not None
        sums = self._sums if len(rows) == len(self._sums) else self._sums[list(rows)]
        return _FeatureGradients(multiplied(sums, factors), self._frontiers, self._parameters)

    def _pull(self, pulls: Pulls, weights: Sequence[float]) -> list[Tensor]:
        """Return a micro-batch's gradients times its weights, ``[k, …]`` per edge of the frontier."""
        edges = [GradientEdge(node, output) for node, output in pulls.graph.frontier()]
        direct = any(edge.node.name() == "torch::autograd::AccumulateGrad" for edge in edges)
        if direct or not edges or pulls.graph.reached_alone(self._parameters):
            raise _direct()
        by_row = {row: pulls.pass_of(row, last=False)(edges) for row in pulls.rows}
        frontier: Frontier = {}
        columns = []
        for place, edge in enumerate(edges):
            arrived = {row: g for row, of_row in by_row.items() if (g := of_row[place]) is not None}
            example = next(iter(arrived.values()))
            if is_hooked(edge, example):
                raise ValueError(
                    "weighting.engine=features cannot pass a hook on the features; take weighting.engine=auto."
                )
            column = row_like(self._parameters).new_zeros(len(weights), example.numel())
            for row, gradient in arrived.items():
                column[row] = gradient.flatten()
            frontier[edge] = example.shape
            columns.append(multiplied(column, weights))
        self._frontiers.append(frontier)
        return columns


def _direct() -> ValueError:
    return ValueError(
        "weighting.engine=features has no gradient of a loss that reaches a shared parameter by itself, such as a "
        "penalty or a tied layer; take weighting.engine=auto."
    )
