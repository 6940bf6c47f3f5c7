"""Backward passes to operations, from whose output gradients the gradients of their parameters are formed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.graph import Node
from multitask.gradients.losses import Inputs, Pull, Pulls
from multitask.gradients.operands import Operand


class Tap:
    """Reads the gradients of backward passes at operations and leaves.

    Args:
        nodes: Operations; the gradient is that of the first output.
        leaves: Parameters.
    """

    def __init__(self, nodes: Sequence[Node], leaves: Sequence[Tensor] = ()) -> None:
        self.nodes = list(nodes)
        self.leaves = list(leaves)
        self._inputs: list[Tensor | GradientEdge] = [*(GradientEdge(node, 0) for node in nodes), *leaves]
        self._arrived: dict[Node, Tensor] = {}

    @contextmanager
    def open(self) -> Iterator["Tap"]:
        """Register hooks at the operations.

        If a pass continues behind an operation, autograd reports the gradient before hooks of the operation's output;
        only the operation itself gets the one after.
        """
        handles = [node.register_prehook(partial(self._hear, node)) for node in self.nodes]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _hear(self, node: Node, gradients: tuple[Tensor, ...]) -> None:
        self._arrived[node] = gradients[0]

    def listen(self, pull: Pull) -> list[Tensor | None]:
        """Return the gradient of a pass at each operation, then at each leaf; ``None`` if none arrives."""
        self._arrived.clear()
        found = pull(self._inputs)
        at_nodes = [self._arrived.get(node, seen) for node, seen in zip(self.nodes, found, strict=False)]
        return at_nodes + list(found[len(at_nodes) :])


class Gatherer:
    """Gathers the gradients of several rows; keeps its buffers between steps."""

    def __init__(self) -> None:
        self._buffers: dict[object, Tensor] = {}

    def __call__(self, tap: Tap, passes: Sequence[Pull], like: Tensor) -> list[Tensor | None]:
        """Return the gradients of k passes at each operation, ``[k, *output]``; ``None`` if none arrive."""
        gathered: dict[int, Tensor] = {}
        for row, pull in enumerate(passes):
            for slot, gradient in enumerate(tap.listen(pull)):
                if gradient is None:
                    continue
                if slot not in gathered:
                    shape = (len(passes), *gradient.shape)
                    gathered[slot] = self.buffer(slot, shape, like.to(gradient.device)).zero_()
                gathered[slot][row].copy_(gradient)
        return [gathered.get(slot) for slot in range(len(tap.nodes))]

    def buffer(self, name: object, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the buffer of a name, with arbitrary content."""
        old = self._buffers.get(name)
        if old is None or old.shape != shape or old.dtype != like.dtype or old.device != like.device:
            old = self._buffers[name] = like.new_empty(shape)
        return old


Place = Callable[[Sequence[int], Tensor], Mapping[Tensor, Tensor]]
"""Takes rows and their gradients at an operation, ``[k, *output]``, and returns those of some of its parameters."""


def form(
    operand: Operand,
    parameters: Sequence[Tensor],
    inputs: Tensor | None,
    rows: Sequence[int],
    gradients: Tensor,
) -> Mapping[Tensor, Tensor]:
    """Form the rows ``D_iᵀ A`` and ``D_iᵀ 1`` of a weight and bias; ``inputs`` may give ``A``; see :data:`Place`."""
    D = operand.matrix(gradients)
    D = D if inputs is None else D.to(inputs.dtype)
    return dict(zip(parameters, operand.gradients(D, parameters, inputs), strict=True))


class TappedPulls(Pulls):
    """Backward passes to the leaves of a tap, and to parameters at its operations.

    Args:
        pulls: The backward passes.
        tap: The operations and leaves.
        places: One per operation.
        found: The gradients of all rows at operations and leaves, if they are known.
    """

    def __init__(
        self, pulls: Pulls, tap: Tap, places: Sequence[Place], found: Sequence[Tensor | None] | None = None
    ) -> None:
        super().__init__(pulls.losses, pulls.graph, pulls.parameters, pulls.rows, pulls.retain_graph)
        self.own = pulls.own
        self._pulls = pulls
        self._tap = tap
        self._places = places
        self._rows: dict[Tensor, Tensor | None] | None = None
        if found is not None:
            self._rows = self._by_parameter(found, lambda place, g: place(self.rows, g))

    def pull(self, row: int, inputs: Inputs, last: bool | None = None) -> list[Tensor | None]:
        """Return a row's gradients at parameters; see :class:`Pulls`."""
        if self._rows is None:
            found = self._tap.listen(partial(self._pulls.pull, row, last=last))
            each = self._by_parameter(
                found, lambda place, g: {p: rows[0] for p, rows in place([row], g[None]).items()}
            )
        else:
            i = self.rows.index(row)
            each = {p: None if rows is None else rows[i] for p, rows in self._rows.items()}
        return [each.get(p) for p in inputs]  # type: ignore[arg-type]

    def _by_parameter(
        self, found: Sequence[Tensor | None], take: Callable[[Place, Tensor], Mapping[Tensor, Tensor]]
    ) -> dict[Tensor, Tensor | None]:
        """Return the gradients of the parameters, given those at operations and leaves."""
        count = len(self._tap.nodes)
        each = dict(zip(self._tap.leaves, found[count:], strict=True))
        for place, gradient in zip(self._places, found[:count], strict=True):
            if gradient is not None:
                each |= take(place, gradient)
        return each
