"""Approximate task gradients: with respect to the shared features, in place of the shared parameters."""

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
    numbers,
    processes,
    row_like,
    sent,
    split_like,
)

Frontier = dict[GradientEdge, torch.Size]
"""The edges into the shared graph of a micro-batch, and the shapes of their gradients."""


class FeatureGradients(RowGradients):
    """The rows are the losses' gradients at the features.

    Their Gramian only bounds that of the parameters (Sener and Koltun, Multi-Task Learning as Multi-Objective
    Optimization, 2018, MGDA-UB); the combined gradient is exact for its weights. Each example has features of its
    own, so that the Gramians of micro-batches and processes add up.

    Args:
        jacobian: This process's rows, ``[k, f]``, the micro-batches' columns side by side.
        frontiers: One per micro-batch; none if this process has no label.
        parameters: The shared parameters.
    """

    def __init__(self, jacobian: Tensor, frontiers: Sequence[Frontier], parameters: Sequence[Tensor]) -> None:
        super().__init__(jacobian, parameters)
        self._frontiers = frontiers

    def gramian(self) -> Tensor:
        """Return the Gramian of the feature gradients, shape ``[k, k]``, over all processes."""
        gramian = super().gramian()
        if processes() > 1:
            dist.all_reduce(gramian)
        return gramian

    def combine(self, weights: Tensor) -> None:
        """Propagate the combined feature gradient to the parameters."""
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
    """Approximate and cheap: one backward pass through the shared graph for any number of losses."""

    def clear(self) -> None:
        """Start a new step."""
        self._frontiers: list[Frontier] = []
        self._columns: list[Tensor] = []

    def lay_out(self, parameters: Sequence[Tensor], moved: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        """Reject a parameter that has become shared within the step: features have no columns of parameters."""
        if list(moved):
            raise _direct()

    def add(
        self,
        pulls: Pulls,
        parameters: Sequence[Tensor],
        shares: Sequence[float],
        parts: Sequence[float] | None = None,
        wanted: Sequence[int] | None = None,
        alone: bool = False,
    ) -> None:
        """Add a micro-batch, which sends nothing; see :class:`Rows`.

        Raises:
            ValueError: If a loss reaches a shared parameter directly, as a penalty does, or a hook changes the
                gradients at the features.
        """
        self._parameters = list(parameters)
        like = row_like(parameters)
        share = sent(torch.tensor(shares, dtype=like.dtype), like.device)[:, None]
        self._columns = [columns * (1 - share) for columns in self._columns] or [
            share.new_zeros(len(share), 0)
        ]
        if pulls.rows and parameters:
            self._pull(pulls, share)
        if parts is not None:
            self._columns = [
                columns * sent(torch.tensor(parts, dtype=share.dtype), share.device)[:, None]
                for columns in self._columns
            ]

    def gradients(self, rows: Sequence[int]) -> StoredGradients:
        """Return the gradients of some rows, over all processes."""
        means = torch.cat(self._columns, 1)
        means = means if len(rows) == len(means) else means[list(rows)]
        return FeatureGradients(means, self._frontiers, self._parameters)

    def _pull(self, pulls: Pulls, share: Tensor) -> None:
        edges = [GradientEdge(node, output) for node, output in pulls.graph.frontier()]
        direct = any(edge.node.name() == "torch::autograd::AccumulateGrad" for edge in edges)
        if direct or not edges or pulls.graph.reached_alone(self._parameters):
            raise _direct()
        by_row = {row: pulls.pass_of(row, last=False)(edges) for row in pulls.rows}
        shapes = []
        for place, edge in enumerate(edges):
            arrived = {row: g for row, of_row in by_row.items() if (g := of_row[place]) is not None}
            example = next(iter(arrived.values()))
            if is_hooked(edge, example):
                raise ValueError(
                    "weighting.engine=features cannot pass a hook on the features; take weighting.engine=auto."
                )
            column = share.new_zeros(len(share), example.numel())
            for row, gradient in arrived.items():
                column[row] = gradient.flatten()
            shapes.append(example.shape)
            self._columns.append(column * share)
        self._frontiers.append(dict(zip(edges, shapes, strict=True)))


def _direct() -> ValueError:
    return ValueError(
        "weighting.engine=features has no gradient of a loss that reaches a shared parameter by itself, such as a "
        "penalty or a tied layer; take weighting.engine=auto."
    )
