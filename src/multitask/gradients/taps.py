"""Backward passes that stop at operations and leaves, and the gradients of many rows gathered there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.graph import Node
from multitask.gradients.operands import Operand
from multitask.gradients.rows import real_shape, write

Pull = Callable[[Sequence[Tensor | GradientEdge]], Sequence[Tensor | None]]
"""One backward pass: from inputs to the gradients that arrive there."""


class Passes(Protocol):
    """Backward passes, one per row."""

    def __len__(self) -> int:
        """Return how many rows there are."""

    def pass_of(self, row: int) -> Pull:
        """Return the backward pass of a row."""


class Gathered(NamedTuple):
    """The gradients of k rows at the places of a tap."""

    at_nodes: list[Tensor | None]
    """Those at each operation, ``[k, *shape]``; ``None`` where no row arrives."""
    stored: Tensor | None
    """Those of all leaves, and the rows that were formed, flattened and concatenated, ``[k, n]``."""


class Formed(NamedTuple):
    """An operation at which each row of its weight is formed as soon as its gradient is known."""

    operand: Operand
    shapes: list[torch.Size]
    """Of the weight and, where it has one, of the bias."""

    def rows(self, gradient: Tensor | None, A: Tensor) -> list[Tensor | None]:
        """Return ``Dᵀ A``, and ``Dᵀ 1``, in the shapes of weight and bias; ``A`` are the operand's inputs."""
        if gradient is None:
            return [None] * len(self.shapes)
        (D,) = self.operand.matrix(gradient[None])
        D = D.to(A.dtype)
        return [self.operand.as_weights(D.T @ A), D.sum(0)][: len(self.shapes)]


class Tap:
    """Listens at operations and leaves during backward passes.

    Args:
        nodes: Operations; the gradient of the first output of each is asked for.
        leaves: Parameters.
    """

    def __init__(self, nodes: Sequence[Node], leaves: Sequence[Tensor] = ()) -> None:
        self._nodes = list(nodes)
        self.nodes = len(self._nodes)
        self.leaves = list(leaves)
        self._inputs: list[Tensor | GradientEdge] = [GradientEdge(node, 0) for node in nodes]
        self._inputs += leaves
        self._arrived: dict[Node, Tensor] = {}

    @contextmanager
    def open(self) -> Iterator["Tap"]:
        """Listen at the operations.

        Where an operation runs because something before it is asked for too, autograd reports the gradient
        as it was before the hooks of the operation's output; the operation itself gets the right one.
        """
        handles = [node.register_prehook(self._listener(node)) for node in self._nodes]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _listener(self, node: Node) -> Callable[[tuple[Tensor, ...]], None]:
        def listen(gradients: tuple[Tensor, ...]) -> None:
            self._arrived[node] = gradients[0]

        return listen

    def listen(self, pull: Pull) -> list[Tensor | None]:
        """Return the gradient of a pass at each operation, then at each leaf; ``None`` where it does not arrive."""
        self._arrived.clear()
        found = pull(self._inputs)
        nodes = zip(self._nodes, found, strict=False)
        return [self._arrived.get(node, seen) for node, seen in nodes] + list(found[len(self._nodes) :])


class Gatherer:
    """Gathers the gradients of several rows; keeps its buffers between steps."""

    def __init__(self) -> None:
        self._buffers: dict[object, Tensor] = {}

    def __call__(
        self, tap: Tap, passes: Passes, like: Tensor, formed: Mapping[int, Formed] | None = None
    ) -> Gathered:
        """Let the rows flow back, one after the other.

        Args:
            tap: Where to listen.
            passes: The backward passes, one per row.
            like: A tensor of the results' dtype and device.
            formed: At which of the tap's operations the rows of weights, and of biases, are formed at once.
        """
        formed, k = formed or {}, len(passes)
        inputs = {}
        for slot, of_slot in formed.items():
            operand = of_slot.operand
            # Fresh memory in each step takes longer to get than to fill.
            kept = self.buffer(("inputs", slot), (operand.positions, operand.p), like.device, like.dtype)
            inputs[slot] = operand.inputs(like.dtype, kept)
        shapes = [real_shape(leaf) for leaf in tap.leaves]
        shapes += [shape for of_slot in formed.values() for shape in of_slot.shapes]
        sizes = [shape.numel() for shape in shapes]
        at_nodes: list[Tensor | None] = [None] * tap.nodes
        stored: Tensor | None = None
        if shapes:
            stored = self.buffer("stored", (k, sum(sizes)), like.device, like.dtype)
        for row in range(k):
            found = tap.listen(passes.pass_of(row))
            for slot, gradient in enumerate(found[: tap.nodes]):
                if slot not in inputs:
                    at_nodes[slot] = self._gathered(slot, at_nodes[slot], gradient, row, k, like.dtype)
            if stored is None:
                continue
            made = list(found[tap.nodes :])
            for slot, of_slot in formed.items():
                made += of_slot.rows(found[slot], inputs[slot])
            views = [view.view(shape) for view, shape in zip(stored[row].split(sizes), shapes, strict=True)]
            write(views, made)
        return Gathered(at_nodes, stored)

    def _gathered(
        self, slot: int, rows: Tensor | None, gradient: Tensor | None, row: int, k: int, dtype: torch.dtype
    ) -> Tensor | None:
        if gradient is None:
            if rows is not None:
                rows[row].zero_()
            return rows
        if rows is None:
            rows = self.buffer(slot, (k, *gradient.shape), gradient.device, dtype)
            rows[:row].zero_()
        rows[row].copy_(gradient)
        return rows

    def buffer(
        self, name: object, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Return the memory of this name, with arbitrary content."""
        old = self._buffers.get(name)
        if old is None or old.shape != shape or old.dtype != dtype or old.device != device:
            old = self._buffers[name] = torch.empty(shape, dtype=dtype, device=device)
        return old
