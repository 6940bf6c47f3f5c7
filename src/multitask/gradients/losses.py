"""The losses of one forward pass as the roots of its graph, and the backward pass from each."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from multitask.gradients.graph import Graph

Inputs = Sequence[Tensor | GradientEdge]
Roots = tuple[list[GradientEdge], list[Tensor]]
"""Edges that lead into a graph, and the gradients there."""
Pull = Callable[[Inputs], Sequence[Tensor | None]]
"""One backward pass: from inputs to the gradients that arrive there."""

LossesLike = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""Losses as a model gives them: a tensor ``[m]`` or ``[parts, m]``, or one tensor per loss, ``[]`` or ``[parts]``."""


Counts = float | Tensor | Sequence[float | Tensor] | Mapping[str, float | Tensor] | None
"""The number of elements that each mean loss is over: one number for all, or one per loss, in the losses' shape."""


class Losses:
    """The losses of m tasks on one or several parts of the batch, and the edge at which each enters the graph.

    A tensor made by ``torch.stack`` is split again; otherwise every loss would reach all that is behind it.

    Args:
        losses: One scalar per loss, or one row of losses per part of the batch (half, example).

    Raises:
        ValueError: If there is no loss, or the shapes are wrong.
    """

    def __init__(self, losses: LossesLike) -> None:
        # Edge i of e carries every e-th of the flattened losses from index i on, in a tensor of this shape.
        self._edges: list[GradientEdge | None]
        if isinstance(losses, Tensor):
            if losses.ndim not in (1, 2) or not losses.numel():
                raise ValueError(f"losses must be [m] or [parts, m], not {list(losses.shape)}.")
            whole = losses.detach()
            self._edges, self._shape = _unstacked(losses)
        else:
            each = list(losses.values() if isinstance(losses, Mapping) else losses)
            shapes = {loss.shape for loss in each}
            if len(shapes) != 1 or each[0].ndim > 1:
                raise ValueError(
                    "losses must all be scalars, or all of shape [parts]; they are "
                    f"{', '.join(str(list(loss.shape)) for loss in each) or 'none'}."
                )
            whole = torch.stack([loss.detach() for loss in each], -1)
            self._edges, self._shape = [_edge(loss) for loss in each], each[0].shape
        self.values = whole.reshape(-1, whole.shape[-1])
        """Detached, shape ``[parts, m]``."""
        self.parts, self.m = self.values.shape
        self.names: list[str] = list(losses if isinstance(losses, Mapping) else map(str, range(self.m)))
        """The losses' names, or their numbers."""
        self.of_examples = self.parts > 2
        """Whether each part is a single example."""
        self.by_column = self.parts > 1 and len(self._edges) == self.m
        """Whether each loss has one edge for all parts."""
        self.scale: Tensor | None = None
        """The loss scale, which guards half-precision gradients against underflow."""
        self.factors: list[float] | None = None
        """Factors of the gradients, ``[parts · m]``: this process's share if passes average over processes."""

    def edges(self) -> list[list[GradientEdge]]:
        """Return the edges at which each loss enters the graph."""
        each = [self._edges[i % len(self._edges) :: self.m] for i in range(self.m)]
        return [[edge for edge in of_loss if edge is not None] for of_loss in each]

    @cached_property
    def _seeds(self) -> Tensor:
        """The gradient at each loss that selects it, ``[parts · m]``."""
        seeds = torch.ones_like(self.values).flatten()
        if self.scale is not None:
            seeds = seeds * self.scale.to(seeds)
        return seeds if self.factors is None else seeds * seeds.new_tensor(self.factors)

    @cached_property
    def _each(self) -> Sequence[Tensor]:
        return self._seeds.unbind()

    def root(self, row: int) -> Roots:
        """Return the edge of the loss of a row, ``part · m + task``, and the gradient there that selects it."""
        place, i = divmod(row, len(self._edges))
        seed = self._each[row]
        if self._shape:
            one, seed = seed, self.values.new_zeros(self._shape)
            seed.view(-1)[place] = one
        return _roots([self._edges[i]], [seed])

    def combination(self, weights: Tensor) -> Roots:
        """Return the edges of all losses, with weights ``[parts · m]`` as the gradients there."""
        seeds, e = weights.to(self.values).flatten() * self._seeds, len(self._edges)
        return _roots(self._edges, [seeds[i::e].view(self._shape) for i in range(e)])

    def column(self, task: int, weights: Tensor) -> Roots:
        """Return the edge of a task's losses on all parts, with weights ``[parts]`` as the gradient there."""
        seeds = weights.to(self.values) * self._seeds[task :: self.m]
        return _roots([self._edges[task]], [seeds.view(self._shape)])


def _roots(edges: Sequence[GradientEdge | None], seeds: Sequence[Tensor]) -> Roots:
    """Leave out losses that require no gradient."""
    kept = [(edge, seed) for edge, seed in zip(edges, seeds, strict=True) if edge is not None]
    return [edge for edge, _ in kept], [seed for _, seed in kept]


def gradients_at(
    edges: Sequence[GradientEdge], seeds: Sequence[Tensor], inputs: Inputs, retain_graph: bool = False
) -> list[Tensor | None]:
    """Return the gradient at each input, ``None`` if it is not reached, given the gradients at some edges."""
    if not edges or not inputs:
        return [None] * len(inputs)
    return list(torch.autograd.grad(edges, inputs, seeds, retain_graph, allow_unused=True))  # type: ignore[arg-type]


def _edge(tensor: Tensor) -> GradientEdge | None:
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _unstacked(losses: Tensor) -> tuple[list[GradientEdge | None], torch.Size]:
    """Return the edges of the tensors that ``[m]`` or ``[parts, m]`` losses were stacked from, and their shape."""
    edge, dims = _edge(losses), losses.ndim
    if pieces := _stacked(edge, dims - 1, dims):
        return pieces, losses.shape[:-1]
    pieces = [piece for row in _stacked(edge, 0, dims) for piece in _stacked(row, 0, 1)]
    return (pieces, torch.Size()) if len(pieces) == losses.numel() else ([edge], losses.shape)


def _stacked(edge: GradientEdge | None, dim: int, dims: int) -> list[GradientEdge | None]:
    """Return the edges of the tensors stacked along one of 1 or 2 dimensions; none if this is no such ``stack``."""
    # The graph saves a negative dimension plus 2⁶⁴, which is a multiple of 1 and 2.
    if edge is None or edge.node.name() != "StackBackward0" or edge.node._saved_dim % dims != dim:  # type: ignore[attr-defined]
        return []
    return [None if node is None else GradientEdge(node, output) for node, output in edge.node.next_functions]


def counts_of(counts: Counts, losses: Losses) -> list[float]:
    """Return counts as numbers, ``[parts · m]``; all ones by default.

    Raises:
        ValueError: If they are not one per loss, are negative, or have other names.
    """
    if counts is None:
        return [1.0] * losses.values.numel()
    if not hasattr(counts, "__len__"):
        one = float(counts)
        if 0.0 <= one < math.inf:
            return [one] * losses.values.numel()
        counts = torch.tensor(one)
    if isinstance(counts, Mapping):
        if list(counts) != losses.names:
            raise ValueError(f"counts are of {', '.join(counts)} and losses of {', '.join(losses.names)}.")
        counts = list(counts.values())
    if not isinstance(counts, Tensor):
        each = [torch.as_tensor(count, dtype=torch.float64) for count in counts]  # type: ignore[union-attr]
        counts = torch.stack([count.to(losses.values.device) for count in each], -1)
    given = counts.detach().double().cpu()
    shape = losses.values.shape
    given = given.expand(shape) if given.ndim < len(shape) else given
    if given.shape != shape or not bool(((given >= 0) & given.isfinite()).all()):
        raise ValueError(f"counts must be one number ≥ 0 per loss, {list(shape)}; they are {counts}.")
    return given.flatten().tolist()


class Pulls:
    """One backward pass per row, from its loss; row ``part · m + task`` is a task's loss on a part of the batch.

    A pass also stores the gradients of the parameters that only its task reaches: a head is traversed once.

    Args:
        losses: The losses.
        graph: Their graph.
        own: The parameters that each task alone reaches; none by default.
        rows: The rows; all by default.
        retain_graph: Whether the graph is needed after the last pass.
    """

    def __init__(
        self,
        losses: Losses,
        graph: Graph,
        own: Sequence[Sequence[Tensor]] | None = None,
        rows: Sequence[int] | None = None,
        retain_graph: bool = False,
    ) -> None:
        self.losses = losses
        self.graph = graph
        self.rows = list(range(losses.parts * losses.m) if rows is None else rows)
        self.tasks = sorted({row % losses.m for row in self.rows})
        self.parameters = [[]] * losses.m if own is None else own
        self.own: dict[int, list[Tensor | None]] = {}
        """The gradients of its task's own parameters, by row."""
        self.retain_graph = retain_graph

    def pull(self, row: int, inputs: Inputs, last: bool | None = None) -> list[Tensor | None]:
        """Return the gradient of a row at each input, ``None`` if it is not reached, by one backward pass.

        ``last`` is whether no other pass follows; by default, the last row has the last pass.
        """
        parameters = self.parameters[row % self.losses.m]
        retain_graph = self.retain_graph or not (row == self.rows[-1] if last is None else last)
        gradients = self.gradients_from(row, self.losses.root(row), [*inputs, *parameters], retain_graph)
        self.own[row] = gradients[len(inputs) :]
        return gradients[: len(inputs)]

    def gradients_from(
        self, row: int, roots: Roots, inputs: Inputs, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Return a row's gradient at each input, ``None`` if it is not reached, given those at some edges."""
        return gradients_at(*roots, inputs, retain_graph)
