"""The operation of a graph that uses each parameter."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from multitask.gradients.graph import Graph, Node


@dataclass(frozen=True)
class Use:
    """The only operation that uses a parameter."""

    node: Node
    """The operation's node in the graph."""
    place: int
    """The index of the parameter among the operation's arguments."""
    transposed: bool
    """Whether the parameter is transposed before."""

    @property
    def operation(self) -> str:
        """The name of the node, such as ``AddmmBackward0``."""
        return self.node.name()


def sole_uses(graph: Graph, parameters: Sequence[Tensor]) -> list[Use | None]:
    """Return the only operation that uses each parameter.

    ``None`` for a parameter that is unused, used more than once (reused, tied, penalized), or has hooks.
    """
    consumers: dict[Node, list[tuple[Node, int]]] = {node: [] for node in graph.following}
    leaves: dict[int, Node] = {}
    for node, following in graph.following.items():
        if not following and (leaf := getattr(node, "variable", None)) is not None:
            leaves[id(leaf)] = node
        for place, (after, _) in enumerate(following):
            if after is not None:
                consumers[after].append((node, place))
    for edge, _ in graph.roots:
        consumers.pop(edge.node, None)  # a loss is used outside of the graph
    return [
        None if p._backward_hooks else _climb(leaves.get(id(p)), consumers, p.ndim == 2) for p in parameters
    ]


def _climb(node: Node | None, consumers: dict[Node, list[tuple[Node, int]]], matrix: bool) -> Use | None:
    """Follow a leaf through casts, and a matrix through transpositions, to the operation that uses it."""
    transposed = False
    while len(consumers.get(node, ())) == 1:
        ((node, place),) = consumers[node]
        match node.name():
            case "ToCopyBackward0":
                pass
            case "TBackward0" if matrix:
                transposed = not transposed
            case "TransposeBackward0" if matrix:
                transposed ^= (node._saved_dim0 - node._saved_dim1) % 2 == 1
            case "PermuteBackward0" if matrix:
                transposed ^= node._saved_dims[0] % 2 == 1
            case _:
                is_complex = any(output.dtype.is_complex for output in node._input_metadata)
                return None if is_complex else Use(node, place, transposed)
    return None
