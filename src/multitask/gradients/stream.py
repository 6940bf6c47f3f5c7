"""Computes the Gramian in the memory of one gradient, for any graph; combining is one more backward pass.

The shared parameters are taken in bands of n / (k + 1) numbers, from the losses down. The k rows of one band are
computed one after the other, enter the Gramian and are dropped. The passes of the next band start at the nearest cut
through the graph at which the gradients of all rows take no more than n numbers; without one, at the losses.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.batched import is_hooked
from multitask.gradients.graph import Graph, Node
from multitask.gradients.losses import Pull, Pulls, Roots, gradients_at
from multitask.gradients.rows import (
    StoredGradients,
    add_to_gradients,
    dense,
    inner_products,
    numbers,
    row_like,
    write,
)
from multitask.gradients.task_gradients import Engine, TaskGradients


class StreamedGradients(StoredGradients):
    """A Gramian without its rows, and the graph, which is kept until the rows are combined.

    Args:
        gramian: Shape ``[k, k]``.
        pulls: The backward passes of the rows.
        parameters: The shared parameters.
    """

    def __init__(self, gramian: Tensor, pulls: Pulls, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._gramian = gramian
        self._pulls: Pulls | None = pulls

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``."""
        return self._gramian

    def combine(self, weights: Tensor) -> None:
        """Add ``weightsᵀ J``: the gradient of the weighted losses, which frees the graph.

        Raises:
            ValueError: If the combined gradient does not have the norm that the Gramian implies.
        """
        if self._pulls is None:
            raise _gone("combines the rows twice")
        pulls, self._pulls = self._pulls, None
        before = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        roots = [pulls.losses.root(*divmod(row, pulls.losses.m)) for row in pulls.rows]
        weighted = zip(roots, weights.unbind(), strict=True)
        seeds = [seed * weight.to(seed) for (_, of_row), weight in weighted for seed in of_row]
        torch.autograd.backward([edge for edges, _ in roots for edge in edges], seeds, inputs=self.parameters)
        self._check(weights.to(self._gramian), _epsilon(pulls.graph))
        for p, gradient in zip(self.parameters, before, strict=True):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            if gradient is not None:
                add_to_gradients([p], [gradient])

    def _check(self, weights: Tensor, epsilon: float) -> None:
        norms = [dense(p.grad).norm().to(weights) for p in self.parameters if p.grad is not None]
        squared = torch.stack([*norms, weights.new_zeros(())]).square().sum()
        lengths = weights.abs() @ self._gramian.diagonal().clamp(min=0).sqrt()
        # Infinite and NaN gradients are for the loss scaler to handle: the comparison is false then.
        if (squared - weights @ self._gramian @ weights).abs() > epsilon**0.5 * lengths.square():
            raise ValueError(
                "the combined gradient is not the weighted sum of the losses' gradients: a hook, or a function of "
                "one's own, changes gradients otherwise than by a factor (as clipping does); set weighting.memory=rows."
            )

    def jacobian(self) -> Tensor:
        """Raise, since the rows are not kept."""
        raise _gone("reads the rows themselves")

    def assign(self, vector: Tensor) -> None:
        """Raise: such a vector can only be computed from the rows, which are not kept."""
        raise _gone("reads the rows themselves")


def _epsilon(graph: Graph) -> float:
    """Return the largest machine epsilon of a graph's gradients."""
    dtypes = {output.dtype for node in graph.following for output in node._input_metadata}
    # TF32, which a CUDA device may use instead of float32.
    least = 2.0**-10 if any(leaf.is_cuda for leaf, _ in graph.leaves) else 0.0
    return max([least, *(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)])


def _gone(what: str) -> ValueError:
    return ValueError(
        f"the weighting {what}, and weighting.memory=stream keeps no rows; set weighting.memory=rows."
    )


class Cut(NamedTuple):
    """The edges from the operations before a place in topological order to those after it."""

    place: int
    edges: list[GradientEdge]


Band = list[tuple[Tensor, int, int]]
"""Parameters, with the range of their elements that belong to the band."""


class Streamed(Engine):
    """Exact for any graph whose backward pass is linear, as it is for all of torch's operations."""

    memory = "stream"
    """The value of ``memory`` that names it."""

    def differentiate(self, pulls: Pulls, parameters: Sequence[Tensor]) -> TaskGradients:
        """Compute the rows band by band; see :class:`Engine`."""
        k, n, like = len(pulls.rows), numbers(parameters), row_like(parameters)
        places, cuts = _places(pulls.graph, n // k)
        reached = sorted((p for p in parameters if id(p) in places), key=lambda p: places[id(p)])
        width = -(-n // (k + 1))
        bands = list(_bands(reached, width)) or [[]]
        starts = [places[id(band[0][0])] for band in bands[1:]]
        gramian, rows, here = like.new_zeros(k, k), like.new_empty(k, width), 0
        at = {row: pulls.losses.root(*divmod(row, pulls.losses.m)) for row in pulls.rows}
        for number, (band, start) in enumerate(zip(bands, [*starts, 0], strict=True)):
            inputs = list(dict.fromkeys(p for p, _, _ in band))
            cut = _last(cuts, here, start)
            edges = [] if cut is None else cut.edges
            for row, numbers_of_row in zip(pulls.rows, rows, strict=True):
                # The first pass also computes the gradients of the task's own parameters.
                from_cut: Pull = partial(gradients_at, *at[row], retain_graph=True)
                pull = from_cut if number else pulls.pass_of(row, last=False)
                arrived = _fill(numbers_of_row, band, inputs, edges, pull)
                if cut is not None:
                    at[row] = arrived
            here = here if cut is None else cut.place
            used = rows[:, : sum(end - first for _, first, end in band)]
            gramian += inner_products(used, used)
        return StreamedGradients(gramian, pulls, parameters)


def _fill(
    row: Tensor, band: Band, inputs: Sequence[Tensor], edges: Sequence[GradientEdge], pull: Pull
) -> Roots:
    """Write a row's elements in a band, and return its gradients at edges, from which further passes start."""
    arrived = pull([*inputs, *edges])
    gradients = dict(zip(map(id, inputs), arrived, strict=False))
    views = row[: sum(end - first for _, first, end in band)].split([end - first for _, first, end in band])
    for view, (p, first, end) in zip(views, band, strict=True):
        gradient = gradients[id(p)]
        write([view], [None if gradient is None else dense(gradient).flatten()[first:end]])
    roots = [(e, g) for e, g in zip(edges, arrived[len(inputs) :], strict=True) if g is not None]
    return [edge for edge, _ in roots], [gradient for _, gradient in roots]


def _bands(parameters: Sequence[Tensor], width: int) -> Iterator[Band]:
    """Divide parameters, one after the other, into bands of so many numbers."""
    sizes = [numbers([p]) for p in parameters]
    ends = list(accumulate(sizes))
    for low in range(0, sum(sizes), max(width, 1)):
        places = [(p, end - size, end) for p, size, end in zip(parameters, sizes, ends, strict=True)]
        yield [
            (p, max(low - start, 0), min(low + width, end) - start)
            for p, start, end in places
            if start < low + width and end > low
        ]


def _places(graph: Graph, most: int) -> tuple[dict[int, int], list[Cut]]:
    """Return the first place at which each parameter is used, by its id, and the cuts of at most ``most`` elements.

    At a cut the gradient of every edge is complete: no operation after it has an edge to the same output. Operations
    that only transpose or cast a parameter count as part of it.
    """
    order = graph.following
    leaves: dict[Node, Tensor] = {}
    for node in reversed(order):
        after = [other for other, _ in order[node] if other is not None]
        leaf = leaves.get(after[0]) if len(after) == 1 else None
        leaf = leaf if after else getattr(node, "variable", None)
        if leaf is not None:
            leaves[node] = leaf
    pending = dict.fromkeys(order, 0)
    for node, following in order.items():
        for other, _ in following if node not in leaves else ():
            if other is not None:
                pending[other] += 1
    places = {id(leaves[edge.node]): 0 for edge, _ in graph.roots if edge.node in leaves}
    # For each operation, the indices of its outputs that have received gradients.
    open_edges: dict[Node, set[int]] = {}
    for edge, _ in graph.roots:
        if edge.node not in leaves:
            open_edges.setdefault(edge.node, set()).add(edge.output_nr)
    cuts = []
    for place, (node, following) in enumerate(order.items()):
        if node in leaves:
            continue
        if place and not any(pending[other] for other in open_edges):
            edges = [
                GradientEdge(other, output) for other, outputs in open_edges.items() for output in outputs
            ]
            sizes = [math.prod(edge.node._input_metadata[edge.output_nr].shape) for edge in edges]
            if sum(sizes) <= most:
                cuts.append(Cut(place, edges))
        del open_edges[node]
        for other, output in following:
            if other in leaves:
                places.setdefault(id(leaves[other]), place)
            elif other is not None:
                pending[other] -= 1
                open_edges.setdefault(other, set()).add(output)
    return places, cuts


def _has_hook(edge: GradientEdge) -> bool:
    """Return whether a hook changes the gradient at an edge: a pass that starts from it would apply the hook twice."""
    metadata = edge.node._input_metadata[edge.output_nr]
    nothing = torch.zeros((), dtype=metadata.dtype, device=metadata.device)
    return is_hooked(edge, nothing.expand(metadata.shape))


def _last(cuts: Sequence[Cut], after: int, place: int) -> Cut | None:
    """Return the last cut after one place and up to another at which no hook changes gradients."""
    between = (cut for cut in reversed(cuts) if after < cut.place <= place)
    return next((cut for cut in between if not any(map(_has_hook, cut.edges))), None)
