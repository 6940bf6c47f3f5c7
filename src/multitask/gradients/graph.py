"""The graph behind a step's losses: which of them reach each parameter, and the operation that it enters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, get_gradient_edge

Node = Any  # torch.autograd.graph.Node, with the saved values of its operation as attributes


@dataclass(frozen=True)
class Use:
    """The one operation that a parameter enters.

    Args:
        node: The operation's node in the graph.
        place: The number of the operation's argument.
        transposed: Whether the parameter enters transposed.
    """

    node: Node
    place: int
    transposed: bool

    @property
    def operation(self) -> str:
        """The name of the operation's node, such as ``AddmmBackward0``."""
        return self.node.name()


class Graph:
    """Every node behind some losses, with the set of losses that reach it.

    A set is an integer whose bit i stands for loss i: one pass over the nodes in topological order finds
    all of them.

    Args:
        losses: The edges at which each loss enters its graph; none where it requires no gradient.

    Raises:
        ValueError: If part of the graph lies behind a re-entrant checkpoint, which no gradient with
            respect to chosen parameters can pass.
    """

    def __init__(self, losses: Sequence[Sequence[GradientEdge]]) -> None:
        self._roots = [(edge, i) for i, of_loss in enumerate(losses) for edge in of_loss]
        self._order = _topological([edge.node for edge, _ in self._roots])
        self.reaching: dict[Node, int] = dict.fromkeys(self._order, 0)
        """The losses that reach each node."""
        for edge, i in self._roots:
            self.reaching[edge.node] |= 1 << i
        self.leaves: list[tuple[Tensor, int]] = []
        """Each leaf with the losses that reach it."""
        reaching = self.reaching
        for node in self._order:
            losses_here = reaching[node]
            following = node.next_functions
            if not following and (leaf := getattr(node, "variable", None)) is not None:
                self.leaves.append((leaf, losses_here))
            for after, _ in following:
                if after is not None:
                    reaching[after] |= losses_here

    def runs_python(self) -> bool:
        """Return whether some operation is written in Python, or compiled."""
        return any(isinstance(node, BackwardCFunction) for node in self._order)

    def reached_alone(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether one loss alone reaches some of the parameters in this graph."""
        alone = {id(leaf) for leaf, losses in self.leaves if not _several(losses)}
        return any(id(p) in alone for p in parameters)

    def distances(self) -> dict[Tensor, int]:
        """Return how many operations lie at most between the losses and each leaf."""
        farthest = dict.fromkeys(self._order, 0)
        for node in self._order:
            for after, _ in node.next_functions:
                if after is not None:
                    farthest[after] = max(farthest[after], farthest[node] + 1)
        return {
            leaf: farthest[node]
            for node in self._order
            if (leaf := getattr(node, "variable", None)) is not None
        }

    def shared_nodes(self) -> Iterator[Node]:
        """Yield the nodes that several losses reach."""
        return (node for node, losses in self.reaching.items() if losses & (losses - 1))

    def frontier(self) -> dict[tuple[Node, int], int]:
        """Return the edges from nodes of one loss into nodes of several, with the losses that come by each.

        An edge is a node and the number of its output.
        """
        found: dict[tuple[Node, int], int] = {}
        for edge, i in self._roots:
            if _several(self.reaching[edge.node]):
                key = (edge.node, edge.output_nr)
                found[key] = found.get(key, 0) | 1 << i
        for node, losses in self.reaching.items():
            if _several(losses):
                continue
            for after, output in node.next_functions:
                if after is not None and _several(self.reaching[after]):
                    found[after, output] = found.get((after, output), 0) | losses
        return found

    def sole_uses(self, parameters: Sequence[Tensor]) -> list[Use | None]:
        """Return the operation that each parameter enters, ``None`` unless there is exactly one.

        A parameter that is reused or tied, penalized, changed by a hook, unreached, or hidden in a compiled
        region's single node together with others has no such operation that one could look into.
        """
        consumers: dict[Node, list[tuple[Node, int]]] = {node: [] for node in self._order}
        leaves: dict[int, Node] = {}
        for edge, _ in self._roots:
            # A root is consumed from outside: a parameter must not be seen through it.
            consumers[edge.node].append((None, -1))
        for node in self._order:
            following = node.next_functions
            if not following and (leaf := getattr(node, "variable", None)) is not None:
                leaves[id(leaf)] = node
            for place, (after, _) in enumerate(following):
                if after is not None:
                    consumers[after].append((node, place))
        return [
            None if p._backward_hooks else _climb(leaves.get(id(p)), consumers, p.ndim == 2)
            for p in parameters
        ]


def _several(losses: int) -> bool:
    return bool(losses & (losses - 1))


def _topological(roots: Sequence[Node]) -> list[Node]:
    """Return the nodes behind the roots, each before those that it leads to."""
    finished: list[Node] = []
    seen: set[Node] = set()
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(root.next_functions))]
        while stack:
            node, following = stack[-1]
            for after, _ in following:
                if after is not None and after not in seen:
                    seen.add(after)
                    stack.append((after, iter(after.next_functions)))
                    break
            else:
                stack.pop()
                finished.append(node)
                if node.name() == "CheckpointFunctionBackward":
                    raise ValueError(
                        "the model has a re-entrant checkpoint, which no gradient of a single loss can pass; call "
                        "torch.utils.checkpoint.checkpoint with use_reentrant=False."
                    )
    finished.reverse()
    return finished


def _climb(node: Node | None, consumers: dict[Node, list[tuple[Node, int]]], matrix: bool) -> Use | None:
    transposed = False
    while node is not None:
        if len(consumers[node]) != 1:
            return None
        node, place = consumers[node][0]
        if node is None:
            return None
        turned = _turns(node, matrix)
        if turned is None:
            return None if _is_complex(node) else Use(node, place, transposed)
        transposed ^= turned
    return None


def _is_complex(node: Node) -> bool:
    """Return whether an operation writes complex numbers, whose products are other ones."""
    return any(output.dtype.is_complex for output in node._input_metadata)


def _turns(node: Node, matrix: bool) -> bool | None:
    """Return whether an operation only transposes (True) or only casts (False) a matrix; None for others."""
    match node.name():
        case "ToCopyBackward0":
            return False
        case "TBackward0" if matrix:
            return True
        case "TransposeBackward0" if matrix:
            return (node._saved_dim0 - node._saved_dim1) % 2 == 1
        case "PermuteBackward0" if matrix:
            return node._saved_dims[0] % 2 == 1
    return None


def users(losses: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> list[tuple[str, ...]]:
    """Return the losses that reach each parameter, by name and in the order of ``losses``.

    Outputs of one operation, such as the parts of a split or all of a compiled network, cannot be told
    apart: what any of them reaches counts as reached by each.
    """
    edges = [[get_gradient_edge(loss)] if loss.requires_grad else [] for loss in losses.values()]
    reaching = {id(leaf): bits for leaf, bits in Graph(edges).leaves}
    names = list(losses)
    return [
        tuple(name for i, name in enumerate(names) if reaching.get(id(p), 0) >> i & 1) for p in parameters
    ]
