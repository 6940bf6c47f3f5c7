"""Backward passes one after the other, whose results pile up."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.autodiff.rows import split_like, write
from multitask.autodiff.uses import Node

Roots = Sequence[tuple[Tensor, Tensor]]


class Piles(NamedTuple):
    """What k rows left at the places of a tap."""

    at_nodes: list[Tensor | None]
    """The gradients at each operation, ``[k, *shape]``; ``None`` where no row reaches it."""
    of_leaves: Tensor | None
    """Those of all leaves, flattened and concatenated, ``[k, n]``; ``None`` without leaves."""


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

    def __call__(self, tap: Tap, rows: Iterable[Roots], k: int, dtype: torch.dtype) -> Piles:
        """Let the rows flow back, one after the other.

        Args:
            tap: Where to listen.
            rows: For each row the outputs it comes from, with the gradients there.
            k: The number of rows.
            dtype: The type of the results.
        """
        sizes = [leaf.numel() for leaf in tap.leaves]
        like = tap.leaves[0] if tap.leaves else None
        stored = None if like is None else self._buffer("leaves", (k, sum(sizes)), like, dtype)
        piles: list[Tensor | None] = [None] * tap.nodes
        for row, roots in enumerate(rows):
            found = tap.pull(roots, retain_graph=row < k - 1)
            for slot, gradient in enumerate(found[: tap.nodes]):
                pile = piles[slot]
                if gradient is None:
                    if pile is not None:
                        pile[row].zero_()
                    continue
                if pile is None:
                    pile = piles[slot] = self._buffer(slot, (k, *gradient.shape), gradient, dtype)
                    pile[:row].zero_()
                pile[row].copy_(gradient)
            if stored is not None:
                write(split_like(stored[row], tap.leaves), found[tap.nodes :])
        return Piles(piles, stored)

    def _buffer(self, slot: object, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        old = self._buffers.get(slot)
        if old is None or old.shape != shape or old.dtype != dtype or old.device != like.device:
            old = self._buffers[slot] = torch.empty(shape, dtype=dtype, device=like.device)
        return old
