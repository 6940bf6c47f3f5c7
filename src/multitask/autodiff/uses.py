"""Where the graph of a forward pass uses each parameter, and what the operation there remembers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

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


def sole_uses(roots: Iterable[Tensor], parameters: Sequence[nn.Parameter]) -> list[Use | None]:
    """Return for each parameter the operation it enters, ``None`` unless there is exactly one.

    A parameter that is reused or tied, penalized, changed by a hook, unreached, or hidden in a compiled
    region's single node together with others has no such operation that one could look into.

    Args:
        roots: What the gradients flow back from, with its graph.
        parameters: The parameters in question.
    """
    consumers: dict[Node, list[tuple[Node, int]]] = {}
    leaves: dict[int, Node] = {}
    waiting: list[Node] = []
    for root in roots:
        if root.grad_fn is not None:
            if root.grad_fn not in consumers:
                waiting.append(root.grad_fn)
            # A root is consumed from outside: a parameter must not be seen through it.
            consumers.setdefault(root.grad_fn, []).append((None, -1))
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves[id(leaf)] = node
        for place, (following, _) in enumerate(node.next_functions):
            if following is not None:
                if following not in consumers:
                    consumers[following] = []
                    waiting.append(following)
                consumers[following].append((node, place))
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
            return Use(node, place, transposed)
        transposed ^= turned
    return None


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
