"""Backward passes that stop at operations and leaves, and what is kept of the gradients that arrive there."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.graph import Node
from multitask.gradients.losses import Inputs, Pull, Pulls
from multitask.gradients.operands import Operand


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

    def __call__(self, tap: Tap, passes: Sequence[Pull], like: Tensor) -> list[Tensor | None]:
        """Let the rows flow back, one after the other.

        Args:
            tap: Where to listen.
            passes: The backward passes, one per row.
            like: A tensor of the results' dtype and device.

        Returns:
            The gradients at each operation, ``[k, *shape]``; ``None`` where none arrives.
        """
        gathered: list[Tensor | None] = [None] * tap.nodes
        for row, pull in enumerate(passes):
            for slot, (gradient, rows) in enumerate(zip(tap.listen(pull), gathered, strict=True)):
                if gradient is not None:
                    if rows is None:
                        shape = (len(passes), *gradient.shape)
                        gathered[slot] = rows = self.buffer(slot, shape, like.to(gradient.device))
                        rows[:row].zero_()
                    rows[row].copy_(gradient)
                elif rows is not None:
                    rows[row].zero_()
        return gathered

    def buffer(self, name: object, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the memory of this name, with arbitrary content."""
        old = self._buffers.get(name)
        if old is None or old.shape != shape or old.dtype != like.dtype or old.device != like.device:
            old = self._buffers[name] = like.new_empty(shape)
        return old


class Place(ABC):
    """What becomes of the gradients that arrive at an operation.

    Args:
        parameters: Those whose rows it returns.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters

    @abstractmethod
    def take(self, row: int, gradient: Tensor | None) -> Sequence[Tensor | None]:
        """Take the gradient of a row, and return that row of each parameter."""

    @abstractmethod
    def take_all(self, rows: Sequence[int], gradients: Tensor) -> Sequence[Tensor]:
        """Take the gradients of several rows, ``[k, *output]``, and return these rows of each parameter."""


class Formed(Place):
    """An operation at which each row of its weight is formed as soon as its gradient is known.

    Args:
        operand: The operation.
        parameters: The weight and, where it has one, the bias.
        inputs: The operand's inputs, which rows that arrive one by one need.
    """

    def __init__(self, operand: Operand, parameters: Sequence[Tensor], inputs: Tensor | None = None) -> None:
        super().__init__(parameters)
        self._operand = operand
        self._inputs = inputs

    def take(self, row: int, gradient: Tensor | None) -> Sequence[Tensor | None]:
        """Return ``Dᵀ A``, and ``Dᵀ 1``, in the shapes of weight and bias."""
        if gradient is None:
            return [None] * len(self.parameters)
        assert self._inputs is not None
        (D,) = self._operand.matrix(gradient[None])
        D = D.to(self._inputs.dtype)
        return [self._operand.as_weights(D.T @ self._inputs), D.sum(0)][: len(self.parameters)]

    def take_all(self, rows: Sequence[int], gradients: Tensor) -> Sequence[Tensor]:
        """Return all ``D_iᵀ A``, and all ``D_iᵀ 1``."""
        D = self._operand.matrix(gradients)
        return [self._operand.products(D), D.sum(1)][: len(self.parameters)]


class TappedPulls(Pulls):
    """Backward passes to some parameters that stop at operations and leaves.

    Args:
        pulls: The whole passes.
        tap: Where they stop.
        places: What becomes of the gradients at each operation.
        found: The gradients of all rows at operations and leaves, where they have flowed back at once.
    """

    def __init__(
        self, pulls: Pulls, tap: Tap, places: Sequence[Place], found: Sequence[Tensor | None] | None = None
    ) -> None:
        super().__init__(pulls.losses, pulls.graph, pulls.parameters, pulls.tasks, pulls.retain_graph)
        self.own = pulls.own
        self._pulls = pulls
        self._tap = tap
        self._places = places
        self._rows: dict[Tensor, Tensor | None] | None = None
        if found is not None:
            self._rows = dict(zip(tap.leaves, found[tap.nodes :], strict=True))
            for place, gradients in zip(places, found[: tap.nodes], strict=True):
                rows = (
                    [None] * len(place.parameters)
                    if gradients is None
                    else place.take_all(self.rows, gradients)
                )
                self._rows |= zip(place.parameters, rows, strict=True)

    def pass_of(self, row: int, last: bool | None = None) -> Pull:
        """Return the backward pass of a row, from parameters to its gradients there."""
        if self._rows is not None:
            place, there = self.rows.index(row), self._rows
            each = {p: None if rows is None else rows[place] for p, rows in there.items()}
            return lambda parameters: [each[p] for p in parameters]  # type: ignore[index]

        def pull(parameters: Inputs) -> list[Tensor | None]:
            found = self._tap.listen(self._pulls.pass_of(row, last))
            each = dict(zip(self._tap.leaves, found[self._tap.nodes :], strict=True))
            for place, gradient in zip(self._places, found[: self._tap.nodes], strict=True):
                each |= zip(place.parameters, place.take(row, gradient), strict=True)
            return [each[p] for p in parameters]  # type: ignore[index]

        return pull
