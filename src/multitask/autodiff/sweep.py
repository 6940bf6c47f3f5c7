"""Backward passes one after the other, whose results pile up."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.autodiff.operands import Operand
from multitask.autodiff.rows import write
from multitask.autodiff.uses import Node

Roots = Sequence[tuple[Tensor, Tensor]]


class Piles(NamedTuple):
    """What k rows left at the places of a tap."""

    at_nodes: list[Tensor | None]
    """The gradients at each operation, ``[k, *shape]``; ``None`` where no row reaches it."""
    stored: Tensor | None
    """Those of all leaves, and the rows that were formed, flattened and concatenated, ``[k, n]``."""


class Formed(NamedTuple):
    """An operation at which each row of its weight is formed as soon as its gradient is there."""

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
    """Backward passes that stop at operations and leaves, and tell what arrives there.

    Args:
        nodes: Operations, each of which is asked for the gradient of its first output.
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

    def pull(self, roots: Roots, retain_graph: bool) -> Sequence[Tensor | None]:
        """Return the gradient at each operation, then at each leaf; ``None`` where it is not reached."""
        there = [(output, gradient) for output, gradient in roots if output.requires_grad]
        if not there:
            return [None] * len(self._inputs)
        self._arrived.clear()
        found = torch.autograd.grad(
            [output for output, _ in there],
            self._inputs,  # type: ignore[arg-type]  # tensors and edges may be mixed
            [gradient for _, gradient in there],
            retain_graph=retain_graph,
            allow_unused=True,
        )
        nodes = zip(self._nodes, found, strict=False)
        return [self._arrived.get(node, seen) for node, seen in nodes] + list(found[len(self._nodes) :])


class Sweep:
    """Piles up the gradients of several rows; keeps its buffers between steps."""

    def __init__(self) -> None:
        self._buffers: dict[object, Tensor] = {}

    def __call__(
        self,
        tap: Tap,
        rows: Iterable[Roots],
        k: int,
        like: Tensor,
        formed: Mapping[int, Formed] | None = None,
    ) -> Piles:
        """Let the rows flow back, one after the other.

        Args:
            tap: Where to listen.
            rows: For each row the outputs it comes from, with the gradients there.
            k: The number of rows.
            like: A tensor of the type of the results, and where they are to lie.
            formed: At which of the tap's operations the rows of weights, and of biases, are formed at once.
        """
        formed = formed or {}
        inputs = {}
        for slot, of_slot in formed.items():
            operand = of_slot.operand
            # Memory that is asked for anew in each step takes longer to get than to fill.
            kept = self.buffer(("inputs", slot), (operand.positions, operand.p), like.device, like.dtype)
            inputs[slot] = operand.inputs(like.dtype, kept)
        shapes = [leaf.shape for leaf in tap.leaves]
        shapes += [shape for of_slot in formed.values() for shape in of_slot.shapes]
        sizes = [shape.numel() for shape in shapes]
        piles: list[Tensor | None] = [None] * tap.nodes
        stored: Tensor | None = None
        if shapes:
            stored = self.buffer("stored", (k, sum(sizes)), like.device, like.dtype)
        for row, roots in enumerate(rows):
            found = tap.pull(roots, retain_graph=row < k - 1)
            for slot, gradient in enumerate(found[: tap.nodes]):
                if slot not in inputs:
                    piles[slot] = self._piled(slot, piles[slot], gradient, row, k, like.dtype)
            if stored is None:
                continue
            made = list(found[tap.nodes :])
            for slot, of_slot in formed.items():
                made += of_slot.rows(found[slot], inputs[slot])
            views = [view.view(shape) for view, shape in zip(stored[row].split(sizes), shapes, strict=True)]
            write(views, made)
        return Piles(piles, stored)

    def _piled(
        self, slot: int, pile: Tensor | None, gradient: Tensor | None, row: int, k: int, dtype: torch.dtype
    ) -> Tensor | None:
        if gradient is None:
            if pile is not None:
                pile[row].zero_()
            return pile
        if pile is None:
            pile = self.buffer(slot, (k, *gradient.shape), gradient.device, dtype)
            pile[:row].zero_()
        pile[row].copy_(gradient)
        return pile

    def buffer(
        self, name: object, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Return the memory of this name, whatever is in it."""
        old = self._buffers.get(name)
        if old is None or old.shape != shape or old.dtype != dtype or old.device != device:
            old = self._buffers[name] = torch.empty(shape, dtype=dtype, device=device)
        return old
