"""Backward passes that stop at operations and leaves, and the gradients of many rows gathered there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.graph import Node
from multitask.gradients.losses import Pull
from multitask.gradients.operands import Operand
from multitask.gradients.rows import numbers, split_like, write


class Gathered(NamedTuple):
    """The gradients of k rows at the places of a tap."""

    at_nodes: list[Tensor | None]
    """Those at each operation, ``[k, *shape]``, or the rows formed there, ``[k, n]``; ``None`` where none arrives."""
    stored: Tensor
    """Those of all leaves, flattened and concatenated, ``[k, n]``."""


class Formed(NamedTuple):
    """An operation at which each row of its weight is formed as soon as its gradient is known."""

    operand: Operand
    parameters: list[Tensor]
    """The weight and, where it has one, the bias."""

    def rows(self, gradient: Tensor | None, A: Tensor) -> list[Tensor | None]:
        """Return ``Dᵀ A``, and ``Dᵀ 1``, in the shapes of weight and bias; ``A`` are the operand's inputs."""
        if gradient is None:
            return [None] * len(self.parameters)
        (D,) = self.operand.matrix(gradient[None])
        D = D.to(A.dtype)
        return [self.operand.as_weights(D.T @ A), D.sum(0)][: len(self.parameters)]


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
        handles = [node.register_prehook(partial(self._hear, node)) for node in self._nodes]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _hear(self, node: Node, gradients: tuple[Tensor, ...]) -> None:
        self._arrived[node] = gradients[0]

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
        self, tap: Tap, passes: Sequence[Pull], like: Tensor, formed: Mapping[int, Formed] | None = None
    ) -> Gathered:
        """Let the rows flow back, one after the other.

        Args:
            tap: Where to listen.
            passes: The backward passes, one per row.
            like: A tensor of the results' dtype and device.
            formed: At which of the tap's operations the rows of weights, and of biases, are formed at once.
        """
        formed, k = formed or {}, len(passes)
        stored = self.buffer("stored", (k, numbers(tap.leaves)), like)
        at_nodes: list[Tensor | None] = [None] * tap.nodes
        inputs = {}
        for slot, (operand, parameters) in formed.items():
            at_nodes[slot] = self.buffer(("rows", slot), (k, numbers(parameters)), like)
            # Fresh memory in each step takes longer to get than to fill.
            memory = self.buffer(("inputs", slot), (operand.positions, operand.p), like)
            inputs[slot] = operand.inputs(like.dtype, memory)
        for row, pull in enumerate(passes):
            found = tap.listen(pull)
            write(split_like(stored[row], tap.leaves), found[tap.nodes :])
            for slot, (gradient, rows) in enumerate(zip(found[: tap.nodes], at_nodes, strict=True)):
                if slot in formed and rows is not None:
                    views = split_like(rows[row], formed[slot].parameters)
                    write(views, formed[slot].rows(gradient, inputs[slot]))
                elif gradient is not None:
                    if rows is None:
                        shape = (k, *gradient.shape)
                        at_nodes[slot] = rows = self.buffer(slot, shape, like.to(gradient.device))
                        rows[:row].zero_()
                    rows[row].copy_(gradient)
                elif rows is not None:
                    rows[row].zero_()
        return Gathered(at_nodes, stored)

    def buffer(self, name: object, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the memory of this name, with arbitrary content."""
        old = self._buffers.get(name)
        if old is None or old.shape != shape or old.dtype != like.dtype or old.device != like.device:
            old = self._buffers[name] = like.new_empty(shape)
        return old
