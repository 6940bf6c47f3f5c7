"""The operation of a graph that each parameter enters."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from multitask.gradients.graph import Graph, Node


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


def sole_uses(graph: Graph, parameters: Sequence[Tensor]) -> list[Use | None]:
    """Return the operation that each parameter enters, ``None`` unless there is exactly one.

    A parameter that is reused or tied, penalized, changed by a hook, unreached, or hidden in a compiled
    region's single node together with others has no such operation that one could look into.
    """
    consumers: dict[Node, list[tuple[Node, int]]] = {node: [] for node in graph.following}
    leaves: dict[int, Node] = {}
    for edge, _ in graph.roots:
        # A root is consumed from outside: a parameter must not be seen through it.
        consumers[edge.node].append((None, -1))
    for node, following in graph.following.items():
        if not following and (leaf := getattr(node, "variable", None)) is not None:
            leaves[id(leaf)] = node
        for place, (after, _) in enumerate(following):
            if after is not None:
                consumers[after].append((node, place))
    return [
        None if p._backward_hooks else _climb(leaves.get(id(p)), consumers, p.ndim == 2) for p in parameters
    ]


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
