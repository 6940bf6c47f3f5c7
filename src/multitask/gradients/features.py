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
    multiplied,
    numbers,
    processes,
    row_like,
    split_like,
    widened,
    write,
)
from multitask.gradients.task_gradients import MicroBatch

Frontier = tuple[list[GradientEdge], list[torch.Size]]
"""The edges into the shared graph of a micro-batch, and the shapes of the gradients there."""


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
        total = widened(row_like(self.parameters)).new_zeros(numbers(self.parameters))
        views = split_like(total, self.parameters)
        pieces = iter(vector.split([shape.numel() for _, shapes in self._frontiers for shape in shapes]))
        for edges, shapes in self._frontiers:
            seeds = [next(pieces).view(shape) for shape in shapes]
            write(views, gradients_at(edges, seeds, self.parameters), 1.0)
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
        pulls, parameters, weights, factors, _, alone = batch
        self._parameters = list(parameters)
        like = row_like(parameters) if alone else widened(row_like(parameters))
        before = None if self._sums is None or not self._sums.numel() else self._sums
        found = [like.new_zeros(len(weights), 0) if before is None else before]
        if pulls.rows and parameters:
            found.append(multiplied(self._pull(pulls, len(weights), like), weights))
        else:
            for row in pulls.rows:
                pulls.pull(row, [])  # only for the task's own parameters
        self._sums = multiplied(torch.cat(found, 1), factors or [1.0])

    def gradients(self, rows: Sequence[int], factors: Sequence[float]) -> StoredGradients:
        assert self._sums is not None
        sums = self._sums if len(rows) == len(self._sums) else self._sums[list(rows)]
        return _FeatureGradients(multiplied(sums, factors), self._frontiers, self._parameters)

    def _pull(self, pulls: Pulls, k: int, like: Tensor) -> Tensor:
        """Return a micro-batch's gradients at the edges of its frontier, ``[k, f]``."""
        edges = [GradientEdge(node, output) for node, output in pulls.graph.frontier()]
        direct = any(edge.node.name() == "torch::autograd::AccumulateGrad" for edge in edges)
        if direct or not edges or pulls.graph.reached_alone(self._parameters):
            raise _direct()
        if any(map(is_hooked, edges)):
            raise ValueError(
                "weighting.engine=features cannot pass a hook on the features; take weighting.engine=auto."
            )
        shapes = [torch.Size(edge.node._input_metadata[edge.output_nr].shape) for edge in edges]
        sizes = [shape.numel() for shape in shapes]
        columns = like.new_zeros(k, sum(sizes))
        for row in pulls.rows:
            views = [part.view(shape) for part, shape in zip(columns[row].split(sizes), shapes, strict=True)]
            write(views, pulls.pull(row, edges, last=False))
        self._frontiers.append((edges, shapes))
        return columns


def _direct() -> ValueError:
    return ValueError(
        "weighting.engine=features has no gradient of a loss that reaches a shared parameter by itself, such as a "
        "penalty or a tied layer; take weighting.engine=auto."
    )
