"""The losses of one forward pass as the roots of its graph, and the backward pass from each."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

if TYPE_CHECKING:
    from multitask.gradients.graph import Graph

Inputs = Sequence[Tensor | GradientEdge]

LossesLike = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""Losses as a model gives them: a tensor ``[m]`` or ``[parts, m]``, or one tensor per loss, ``[]`` or ``[parts]``."""


class Losses:
    """The losses of m tasks, each on one or several parts of the batch, and where each enters the graph.

    A tensor that ``torch.stack`` made is taken apart again, since all that lies behind it would otherwise
    count as reached by every loss.

    Args:
        losses: One number per loss, or a row of them per part of the batch (halves, examples).

    Raises:
        ValueError: If there is no loss, or their shapes are no such thing.
    """

    def __init__(self, losses: LossesLike) -> None:
        self.names: list[str] = list(losses) if isinstance(losses, Mapping) else []
        self._edges: list[list[GradientEdge | None]]
        self._apart: Literal["each", "columns", "whole"]
        if isinstance(losses, Tensor):
            if losses.ndim not in (1, 2) or not losses.numel():
                raise ValueError(f"losses must be [m] or [parts, m], not {list(losses.shape)}.")
            whole = losses.detach()
            self._edges, self._apart = _taken_apart(losses)
        else:
            each = list(losses.values() if isinstance(losses, Mapping) else losses)
            shapes = {tuple(loss.shape) for loss in each}
            if len(shapes) != 1 or len(next(iter(shapes))) > 1:
                raise ValueError(
                    "losses must all be scalars, or all of shape [parts]; they are "
                    f"{', '.join(str(list(loss.shape)) for loss in each) or 'none'}."
                )
            whole = torch.stack([loss.detach() for loss in each], -1)
            self._edges = [[_edge(loss) for loss in each]]
            self._apart = "columns" if whole.ndim == 2 else "each"
        self._shape = whole.shape
        self.values = whole.reshape(-1, whole.shape[-1])
        """Detached, shape ``[parts, m]``."""
        self.parts, self.m = self.values.shape
        self.of_examples = self.parts > 2
        """Whether the parts are single examples, whatever their number."""
        self.scale: Tensor | None = None
        """The factor that guards half-precision gradients against underflow."""

    @property
    def columns(self) -> list[GradientEdge | None] | None:
        """The edge of each loss on all parts, ``[parts]``; ``None`` where parts are edges of their own."""
        return self._edges[0] if self._apart == "columns" else None

    def edges(self) -> list[list[GradientEdge]]:
        """Return the edges at which each loss enters the graph."""
        if self._apart == "whole":
            return [[edge for edge in self._edges[0] if edge is not None]] * self.m
        return [[edge for edge in column if edge is not None] for column in zip(*self._edges, strict=True)]

    def root(self, part: int, task: int) -> tuple[GradientEdge | None, Tensor]:
        """Return the edge of a task's loss on a part, and the gradient there that stands for this loss alone."""
        one = self.values.new_ones(()) if self.scale is None else self.scale.to(self.values)
        if self._apart == "each":
            return self._edges[part][task], one
        if self._apart == "columns":
            seed = self.values.new_zeros(self.parts)
            seed[part] = one
            return self._edges[0][task], seed
        seed = torch.zeros_like(self.values)
        seed[part, task] = one
        return self._edges[0][0], seed.view(self._shape)

    def combination(self, weights: Tensor) -> tuple[list[GradientEdge], list[Tensor]]:
        """Return the edges of all losses, with weights ``[parts, m]`` as the gradients there."""
        seeds = weights.to(self.values)
        seeds = seeds if self.scale is None else seeds * self.scale.to(seeds)
        if self._apart == "whole":
            pairs = [(self._edges[0][0], seeds.view(self._shape))]
        elif self._apart == "columns":
            pairs = list(zip(self._edges[0], seeds.unbind(1), strict=True))
        else:
            flat = [edge for row in self._edges for edge in row]
            pairs = list(zip(flat, seeds.flatten().unbind(), strict=True))
        there = [(edge, seed) for edge, seed in pairs if edge is not None]
        return [edge for edge, _ in there], [seed for _, seed in there]

    def column(self, task: int, weights: Tensor) -> tuple[GradientEdge | None, Tensor]:
        """Return the edge of a task's losses on all parts, and weights, ``[parts]``, as the gradient there."""
        assert self.columns is not None
        seed = weights.to(self.values)
        return self.columns[task], seed if self.scale is None else seed * self.scale.to(seed)


# The graph saves negative dimensions as unsigned numbers.
_UNSIGNED = 2**64


def gradients_at(
    edge: GradientEdge | None, seed: Tensor, inputs: Sequence[Tensor | GradientEdge], retain_graph: bool
) -> list[Tensor | None]:
    """Return the gradient at each input of what flows back from an edge; ``None`` where nothing arrives."""
    if edge is None or not inputs:
        return [None] * len(inputs)
    found = torch.autograd.grad([edge], inputs, [seed], retain_graph=retain_graph, allow_unused=True)  # type: ignore[arg-type]
    return list(found)


def _edge(tensor: Tensor) -> GradientEdge | None:
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _taken_apart(
    losses: Tensor,
) -> tuple[list[list[GradientEdge | None]], Literal["each", "columns", "whole"]]:
    """Return the edges of a tensor ``[m]`` or ``[parts, m]`` as far as it was stacked from them, and how far."""
    edge = _edge(losses)
    pieces = _stacked(edge, losses.ndim - 1, losses.ndim, losses.shape[-1])
    if pieces is not None:
        return [pieces], "columns" if losses.ndim == 2 else "each"
    rows = _stacked(edge, 0, 2, len(losses)) if losses.ndim == 2 else None
    apart = [_stacked(row, 0, 1, losses.shape[1]) for row in rows or []]
    if apart and all(row is not None for row in apart):
        return [row for row in apart if row is not None], "each"
    return [[edge]], "whole"


def _stacked(edge: GradientEdge | None, dim: int, dims: int, count: int) -> list[GradientEdge | None] | None:
    """Return the edges that ``torch.stack`` put together along a dimension; ``None`` if it did not."""
    if edge is None or edge.node.name() != "StackBackward0":
        return None
    saved: int = edge.node._saved_dim  # type: ignore[attr-defined]
    if saved not in (dim, _UNSIGNED - 1 if dim == dims - 1 else dim):
        return None
    following = edge.node.next_functions
    if len(following) != count:
        return None
    return [None if node is None else GradientEdge(node, output) for node, output in following]


class Pulls:
    """One backward pass per row, each from its loss.

    A row is a task's loss on a part of the batch; rows are ordered part by part, tasks within a part. A
    pass also leaves in ``own`` the gradients of the parameters that its task alone reaches, so that the
    graph of a head is walked through once.

    Args:
        losses: The losses.
        graph: The graph behind them.
        own: The parameters that each task alone reaches.
        tasks: The tasks that have rows; all by default.
        retain_graph: Whether the graph is needed after the last pass.
    """

    def __init__(
        self,
        losses: Losses,
        graph: "Graph",
        own: Sequence[Sequence[Tensor]],
        tasks: Sequence[int] | None = None,
        retain_graph: bool = False,
    ) -> None:
        self.losses = losses
        self.graph = graph
        self.tasks = list(range(losses.m)) if tasks is None else list(tasks)
        self.parameters = own
        self.own: dict[int, list[Tensor | None]] = {}
        """Of each row that was pulled, the gradients of its task's own parameters."""
        self.retain_graph = retain_graph

    def __len__(self) -> int:
        return self.losses.parts * len(self.tasks)

    def task_of(self, row: int) -> int:
        """Return the task of a row."""
        return self.tasks[row % len(self.tasks)]

    def pass_of(self, row: int, last: bool | None = None) -> Callable[[Inputs], list[Tensor | None]]:
        """Return the backward pass of a row: from inputs to the gradients there.

        Args:
            row: The row.
            last: Whether it is the last pass through the graph; by default, whether this is the last row.
        """
        last = row == len(self) - 1 if last is None else last

        def pull(inputs: Inputs) -> list[Tensor | None]:
            own = self.parameters[self.task_of(row)]
            edge, seed = self.losses.root(row // len(self.tasks), self.task_of(row))
            found = gradients_at(edge, seed, [*inputs, *own], retain_graph=self.retain_graph or not last)
            if own:
                self.own[row] = found[len(inputs) :]
                return found[: len(inputs)]
            return found

        return pull
