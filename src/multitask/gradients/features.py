"""Gradients where the losses enter what they share, in place of the parameters: one backward pass, approximate."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.batched import is_hooked
from multitask.gradients.losses import Pulls
from multitask.gradients.rows import add_to_gradients, inner_products, numbers, row_like, split_like
from multitask.gradients.task_gradients import Engine, TaskGradients

Part = tuple[list[GradientEdge], list[torch.Size], Tensor]
"""Edges into the shared graph of a micro-batch, the shapes there, and the losses' gradients at all, ``[k, f]``."""


class FeatureGradients(TaskGradients):
    """The rows are the losses' gradients at the features.

    Their Gramian bounds the parameters' one rather than equals it (Multi-Task Learning as
    Multi-Objective Optimization, 2018, MGDA-UB); the combined gradient is exact for its weights. Other
    examples have other features, so that the Gramians of micro-batches and processes add up.

    Args:
        k: The number of rows.
        parts: The micro-batches; none where this process has no label.
        parameters: The shared parameters.
    """

    def __init__(self, k: int, parts: Sequence[Part], parameters: Sequence[Tensor]) -> None:
        self._k = k
        self._parts = parts
        self._parameters = parameters

    def gramian(self) -> Tensor:
        """Return the Gramian of the feature gradients, shape ``[k, k]``, over all processes."""
        gramian = row_like(self._parameters).new_zeros(self._k, self._k)
        for *_, rows in self._parts:
            gramian += inner_products(rows, rows)
        if _several():
            dist.all_reduce(gramian)
        return gramian

    def combine(self, weights: Tensor) -> None:
        """Pull the combined feature gradient back."""
        self._pull([weights.to(rows) @ rows for *_, rows in self._parts])

    def jacobian(self) -> Tensor:
        """Return the feature gradients of this process, shape ``[k, f]``."""
        return torch.cat([rows for *_, rows in self._parts], 1)

    def assign(self, vector: Tensor) -> None:
        """Pull a feature gradient back, shape ``[f]``."""
        self._pull(vector.split([rows.shape[1] for *_, rows in self._parts]))

    def _pull(self, vectors: Sequence[Tensor]) -> None:
        total = row_like(self._parameters).new_zeros(numbers(self._parameters))
        views = split_like(total, self._parameters)
        for (edges, shapes, _), vector in zip(self._parts, vectors, strict=True):
            pieces = vector.split([shape.numel() for shape in shapes])
            found = torch.autograd.grad(
                edges,
                list(self._parameters),
                [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)],
                allow_unused=True,
            )
            for view, gradient in zip(views, found, strict=True):
                if gradient is not None:
                    view += torch.view_as_real(gradient) if gradient.is_complex() else gradient
        if _several():
            dist.all_reduce(total)
        add_to_gradients(self._parameters, views)


class Features(Engine):
    """Approximate and cheap: what is shared is differentiated once, whatever the number of losses."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def clear(self) -> None:
        """Start a new step."""
        self._parts = []

    def lay_out(self, parameters: Sequence[Tensor]) -> None:
        """Change nothing: feature gradients have no columns per parameter."""

    def put(self, row: int, parameter: Tensor, gradient: Tensor) -> None:
        """Refuse a parameter that has become shared within the step."""
        raise _direct()

    def differentiate(self, pulls: Pulls, parameters: Sequence[Tensor]) -> TaskGradients:
        """Gather the gradients at the features; see :class:`Engine`."""
        every = {row: (pulls, row) for row in range(len(pulls))}
        return self.add(len(pulls), every, parameters, [1.0] * len(pulls))

    def add(
        self,
        k: int,
        pulls: Mapping[int, tuple[Pulls, int]],
        parameters: Sequence[Tensor],
        shares: Sequence[float],
        parts: Sequence[float] | None = None,
    ) -> TaskGradients:
        """Add a micro-batch; arguments as for :meth:`AccumulatedRows.add`.

        Raises:
            ValueError: If a loss reaches a shared parameter by itself, as a penalty does, or a hook changes
                what arrives at the features.
        """
        like = row_like(parameters)
        shared = torch.tensor(shares).to(like)
        self._parts = [(edges, shapes, rows * (1 - shared)[:, None]) for edges, shapes, rows in self._parts]
        if pulls and parameters:
            self._parts.append(self._part(k, pulls, shared, like, parameters))
        scaled = self._parts
        if parts is not None:
            here = torch.tensor(parts).to(like)[:, None]
            scaled = [(edges, shapes, rows * here) for edges, shapes, rows in scaled]
        return FeatureGradients(k, scaled, parameters)

    def _part(
        self,
        k: int,
        pulls: Mapping[int, tuple[Pulls, int]],
        shares: Tensor,
        like: Tensor,
        parameters: Sequence[Tensor],
    ) -> Part:
        graph = next(iter(pulls.values()))[0].graph
        edges = [GradientEdge(node, output) for node, output in graph.frontier()]
        direct = any(edge.node.name() == "torch::autograd::AccumulateGrad" for edge in edges)
        if direct or not edges or graph.reached_alone(parameters):
            raise _direct()
        by_row = {row: passes.pass_of(number, last=False)(edges) for row, (passes, number) in pulls.items()}
        shapes: list[torch.Size] = []
        columns: list[Tensor] = []
        for place, edge in enumerate(edges):
            there = {row: g for row, found in by_row.items() if (g := found[place]) is not None}
            example = next(iter(there.values()))
            if is_hooked(edge, example):
                raise ValueError(
                    "weighting.engine=features cannot pass a hook on the features; take weighting.engine=auto."
                )
            column = like.new_zeros(k, example.numel())
            for row, gradient in there.items():
                column[row] = gradient.flatten()
            shapes.append(example.shape)
            columns.append(column)
        return edges, shapes, torch.cat(columns, 1) * shares[:, None]


def _direct() -> ValueError:
    return ValueError(
        "weighting.engine=features has no gradient of a loss that reaches a shared parameter by itself, such as a "
        "penalty or a tied layer; take weighting.engine=auto."
    )


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
