"""The Gramian in the memory of at most two gradients, for any graph; combining takes one more backward pass.

The shared parameters are divided into bands of n / (k + 1) elements, from the losses down. The k rows of a band are
computed, enter the Gramian and are dropped. The passes of the next band start at the nearest cut through the graph
where the gradients of all rows have at most n elements, or at the losses if there is none.
"""

import math
from collections.abc import Sequence
from functools import partial

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
from multitask.gradients.task_gradients import Engine, MicroBatch, TaskGradients


class _StreamedGradients(StoredGradients):
    """A Gramian without its rows, and the graph, which is kept until the rows are combined."""

    def __init__(self, gramian: Tensor, pulls: Pulls, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._gramian = gramian
        self._pulls: Pulls | None = pulls

    def gramian(self) -> Tensor:
        return self._gramian

    def combine(self, weights: Tensor) -> None:
        """Add the gradient of the weighted losses, whose pass frees the graph, and check its norm by the Gramian."""
        if self._pulls is None:
            raise _gone("combines the rows twice")
        pulls, self._pulls = self._pulls, None
        before = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        edges: list[GradientEdge] = []
        seeds: list[Tensor] = []
        for row, weight in zip(pulls.rows, weights.unbind(), strict=True):
            edges_of_row, seeds_of_row = pulls.losses.root(row)
            edges += edges_of_row
            seeds += [seed * weight.to(seed) for seed in seeds_of_row]
        torch.autograd.backward(edges, seeds, inputs=self.parameters)
        self._check(weights.to(self._gramian), _epsilon(pulls.graph))
        for p, gradient in zip(self.parameters, before, strict=True):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            if gradient is not None:
                add_to_gradients([p], [gradient])

    def _check(self, weights: Tensor, epsilon: float) -> None:
        norms = [dense(p.grad).norm().to(weights) for p in self.parameters if p.grad is not None]
        squared = torch.stack([*norms, weights.new_zeros(())]).square().sum()
        lengths = weights.abs() @ self._gramian.diagonal().clamp(min=0).sqrt()
        # False for infinite and NaN gradients, which are left to the loss scaler.
        if (squared - weights @ self._gramian @ weights).abs() > epsilon**0.5 * lengths.square():
            raise ValueError(
                "the combined gradient is not the weighted sum of the losses' gradients: a hook, or a function of "
                "one's own, changes gradients otherwise than by a factor (as clipping does); set weighting.memory=rows."
            )

    def jacobian(self) -> Tensor:
        raise _gone("reads the rows themselves")

    def assign(self, vector: Tensor) -> None:
        raise _gone("reads the rows themselves")


def _epsilon(graph: Graph) -> float:
    """Return the largest machine epsilon of a graph's gradients."""
    dtypes = {output.dtype for node in graph.following for output in node._input_metadata}
    # A CUDA device may use TF32 instead of float32.
    least = 2.0**-10 if any(leaf.is_cuda for leaf, _ in graph.leaves) else 0.0
    return max([least, *(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)])


def _gone(what: str) -> ValueError:
    return ValueError(
        f"the weighting {what}, and weighting.memory=stream keeps no rows; set weighting.memory=rows."
    )


Band = list[tuple[Tensor, int, int]]
"""Parameters, with the range of their elements that belongs to the band."""


class Streamed(Engine):
    """Exact for any graph whose backward pass is linear, as it is for all operations of torch."""

    memory = "stream"

    def clear(self) -> None:
        self._found: _StreamedGradients | None = None

    def add(self, batch: MicroBatch) -> None:
        """Compute the Gramian of the only micro-batch, band by band."""
        pulls, parameters, *_ = batch
        k, n, like = len(pulls.rows), numbers(parameters), row_like(parameters)
        places, cuts = _places(pulls.graph, n // k)
        reached = sorted((p for p in parameters if id(p) in places), key=lambda p: places[id(p)])
        width = -(-n // (k + 1))
        bands = _bands(reached, width)
        starts = [places[id(band[0][0])] for band in bands[1:]]
        gramian, buffer, here = like.new_zeros(k, k), like.new_empty(k, width), 0
        at = {row: pulls.losses.root(row) for row in pulls.rows}
        for number, (band, start) in enumerate(zip(bands, [*starts, 0], strict=True)):
            between = (place for place in reversed(cuts) if here < place <= start)
            cut = next((place for place in between if not any(map(is_hooked, cuts[place]))), None)
            edges = [] if cut is None else cuts[cut]
            rows = buffer[:, : sum(end - first for _, first, end in band)]
            for row, elements in zip(pulls.rows, rows, strict=True):
                # The first pass also computes the gradients of the task's own parameters.
                from_cut: Pull = partial(gradients_at, *at[row], retain_graph=True)
                pull = from_cut if number else partial(pulls.pull, row, last=False)
                arrived = _fill(elements, band, edges, pull)
                if cut is not None:
                    at[row] = arrived
            here = here if cut is None else cut
            gramian += inner_products(rows, rows)
        self._found = _StreamedGradients(gramian, pulls, parameters)

    def gradients(self, rows: Sequence[int], factors: Sequence[float]) -> TaskGradients:
        assert self._found is not None
        return self._found


def _fill(row: Tensor, band: Band, edges: Sequence[GradientEdge], pull: Pull) -> Roots:
    """Write a row's elements of a band, and return its gradients at edges, where further passes start."""
    inputs = list(dict.fromkeys(p for p, _, _ in band))
    arrived = pull([*inputs, *edges])
    gradients = dict(zip(inputs, arrived, strict=False))
    views = row.split([end - first for _, first, end in band])
    for view, (p, first, end) in zip(views, band, strict=True):
        gradient = gradients[p]
        write([view], [None if gradient is None else dense(gradient).flatten()[first:end]])
    roots = [(e, g) for e, g in zip(edges, arrived[len(inputs) :], strict=True) if g is not None]
    return [edge for edge, _ in roots], [gradient for _, gradient in roots]


def _bands(parameters: Sequence[Tensor], width: int) -> list[Band]:
    """Divide the elements of parameters into bands of ``width``; the last may be narrower."""
    bands: list[Band] = [[]]
    left = width
    for p in parameters:
        first, end = 0, numbers([p])
        while first < end:
            if not left:
                bands.append([])
                left = width
            taken = min(left, end - first)
            bands[-1].append((p, first, first + taken))
            first, left = first + taken, left - taken
    return bands


def _places(graph: Graph, most: int) -> tuple[dict[int, int], dict[int, list[GradientEdge]]]:
    """Return the first place at which each parameter is used, by its id, and the cuts of at most ``most`` elements.

    A place is an index into the operations in topological order. A cut is the edges from the operations before a place
    to those after it, by place, if the gradient of each edge is complete. Operations on a parameter alone, such as
    casts and transpositions, count as part of it.
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
    cuts: dict[int, list[GradientEdge]] = {}
    for place, (node, following) in enumerate(order.items()):
        if node in leaves:
            continue
        if place and not any(pending[other] for other in open_edges):
            edges = [
                GradientEdge(other, output) for other, outputs in open_edges.items() for output in outputs
            ]
            sizes = [math.prod(edge.node._input_metadata[edge.output_nr].shape) for edge in edges]
            if sum(sizes) <= most:
                cuts[place] = edges
        del open_edges[node]
        for other, output in following:
            if other in leaves:
                places.setdefault(id(leaves[other]), place)
            elif other is not None:
                pending[other] -= 1
                open_edges.setdefault(other, set()).add(output)
    return places, cuts
