"""The autograd graph of a step: which losses reach each parameter, in this step and in all steps so far."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

Node = Any  # torch.autograd.graph.Node, with the saved values of its operation as attributes


class Graph:
    """The nodes of the graph of some losses, with the set of losses that reach each node.

    A set is an integer whose bit i stands for loss i: one pass in topological order computes all sets.

    Args:
        losses: The edges at which each loss enters the graph; none for a loss that requires no gradient.
        kept: Maps a leaf to the parameter that it stands for, where they differ.

    Raises:
        ValueError: If part of the graph lies behind a re-entrant checkpoint, or a leaf with ``kept`` is sharded.
    """

    def __init__(
        self, losses: Sequence[Sequence[GradientEdge]], kept: Mapping[Tensor, Tensor] | None = None
    ) -> None:
        self.roots = [(edge, i) for i, of_loss in enumerate(losses) for edge in of_loss]
        self.following = _topological([edge.node for edge, _ in self.roots])
        """The nodes in topological order from the losses on, with their outgoing edges (``next_functions``)."""
        self.python = [node for node in self.following if isinstance(node, BackwardCFunction)]
        """The operations written in Python, or compiled."""
        if any(type(node).__name__ == "CheckpointFunctionBackward" for node in self.python):
            raise ValueError(
                "the model has a re-entrant checkpoint, which no gradient of a single loss can pass; call "
                "torch.utils.checkpoint.checkpoint with use_reentrant=False."
            )
        self.reaching: dict[Node, int] = dict.fromkeys(self.following, 0)
        """The set of losses that reach each node."""
        for edge, i in self.roots:
            self.reaching[edge.node] |= 1 << i
        self._leaves: dict[Node, Tensor] = {}
        reaching = self.reaching
        for node, following in self.following.items():
            losses_of_node = reaching[node]
            if not following and (leaf := getattr(node, "variable", None)) is not None:
                if kept is not None and hasattr(leaf, "device_mesh"):
                    raise ValueError(
                        "a loss reaches a sharded parameter outside of its module's forward pass, where FSDP2 adds up "
                        "no gradient; compute it within, or leave the parameter whole by ignored_params."
                    )
                self._leaves[node] = leaf if kept is None else kept.get(leaf, leaf)
            for after, _ in following:
                if after is not None:
                    reaching[after] |= losses_of_node
        self.leaves = [(leaf, reaching[node]) for node, leaf in self._leaves.items()]
        """Each leaf with the set of losses that reach it."""

    def reached_alone(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether a single loss reaches one of the parameters in this graph."""
        alone = {id(leaf) for leaf, losses in self.leaves if losses.bit_count() <= 1}
        return any(id(p) in alone for p in parameters)

    def distances(self, parameters: Iterable[Tensor]) -> list[int | None]:
        """Return the number of operations between the losses and each parameter; ``None`` unless all losses reach it.

        The longest path to the nearest operation that uses the parameter counts: a residual connection is no shortcut.
        """
        farthest, nearest = dict.fromkeys(self.following, 0), dict[Node, int]()
        for node, following in self.following.items():
            distance = farthest[node] + 1
            for after, _ in following:
                if after is not None:
                    farthest[after] = max(farthest[after], distance)
                    nearest[after] = min(nearest.get(after, distance), distance)
        every = sum({1 << i for _, i in self.roots})
        of_all = {leaf: node for node, leaf in self._leaves.items() if self.reaching[node] == every}
        return [nearest.get(of_all.get(p)) for p in parameters]

    def shared_nodes(self) -> Iterator[Node]:
        """Yield the nodes that more than one loss reaches."""
        return (node for node, losses in self.reaching.items() if losses.bit_count() > 1)

    def frontier(self) -> dict[tuple[Node, int], list[tuple[Node | None, int]]]:
        """Return the edges into nodes that several losses reach, from nodes that one loss reaches or from a loss.

        Returns:
            The target of each edge, a node and the index of its output, mapped to its sources: a node (``None``
            for a loss itself) and its loss.
        """
        entering: list[tuple[tuple[Node, int], Node | None, int]] = [
            ((edge.node, edge.output_nr), None, i) for edge, i in self.roots
        ]
        for node, losses in self.reaching.items():
            if losses.bit_count() <= 1:
                entering += [(key, node, losses.bit_length() - 1) for key in self.following[node]]
        edges: dict[tuple[Node, int], list[tuple[Node | None, int]]] = {}
        for key, node, i in entering:
            if key[0] is not None and self.reaching[key[0]].bit_count() > 1:
                edges.setdefault(key, []).append((node, i))
        return edges


def _topological(roots: Sequence[Node]) -> dict[Node, Sequence[tuple[Node, int]]]:
    """Return all nodes reachable from the roots in topological order, with their outgoing edges."""
    following: dict[Node, Sequence[tuple[Node, int]]] = {}
    finished: dict[Node, None] = {}
    stack = list(roots[::-1])
    while stack:
        node = stack[-1]
        if node not in following:
            following[node] = edges = node.next_functions
            stack += [after for after, _ in edges[::-1] if after is not None and after not in following]
            if stack[-1] is not node:
                continue
        finished[stack.pop()] = None
    return {node: following[node] for node in reversed(finished)}


class Ownership:
    """The set of losses that have reached each parameter so far.

    A parameter is shared once a second loss has reached it, in any micro-batch, on any process, in this step
    or an earlier one, since routing may differ from batch to batch.

    Args:
        model: The trained module, or tensors by name; gives the parameters their order and names.
            Every ``nn.Parameter`` that a loss reaches counts; other tensors only if named.
        shared: The shared parameters, instead of those found from the graph. Every other parameter then belongs
            to all losses that reach it.
        kept: Maps the tensors that stand for parameters in the graph to these parameters.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor] | None = None,
        shared: Iterable[Tensor] | None = None,
        kept: Mapping[Tensor, Tensor] | None = None,
    ) -> None:
        self.kept = kept
        self.leaves: list[tuple[Tensor, int]] = []
        """The parameters in the last graph, with the set of losses that reach each."""
        self.shared: list[Tensor] = []
        """The shared parameters in the model's order, then those without a name."""
        self.own: list[list[Tensor]] = []
        """The parameters that each loss reaches in the last graph and that are not shared."""
        self.agreed = True
        """Whether all processes know what this one does."""
        self._model = model
        self._given = None if shared is None else list(shared)
        self.reaching: dict[Tensor, int] = {}
        """The losses that have reached each parameter, in the order of discovery."""
        self._names: dict[Tensor, str] = {}
        self._several: list[Tensor] = []
        self._last: tuple[int, list[tuple[int, int]]] = (0, [])
        """The last graph's number of losses, and its leaves by their identity."""
        self._grew = False

    def find(self, graph: Graph, m: int) -> None:
        """Record which of m losses reach which parameters in a graph."""
        last = m, [(id(leaf), losses) for leaf, losses in graph.leaves]
        if last != self._last:
            for leaf, losses in graph.leaves:
                known = self.reaching.get(leaf, 0)
                if losses & ~known and (known or self._is_trained(leaf)):
                    self.reaching[leaf] = losses | known
                    self._grew = self._grew or bool(self._last[0])
                    self.agreed = False
            self.leaves = [found for found in graph.leaves if found[0] in self.reaching]
            self._last = last
            self._divide()
        self.shared = [p for p in self._several if p.requires_grad]

    def _is_trained(self, leaf: Tensor) -> bool:
        parameter = isinstance(leaf, nn.Parameter)
        # Inputs that require a gradient are new tensors in every step, and not part of a module.
        if leaf not in self._names and (parameter or not isinstance(self._model, nn.Module)):
            self._name_all()
        return parameter or leaf in self._names

    def _name_all(self) -> None:
        self._names = {p: name for name, p in self.named().items()}

    def _divide(self) -> None:
        """List the parameters that are shared, and those of each loss that are not."""
        order = {p: i for i, p in enumerate(self._names)}
        several = [p for p, losses in self.reaching.items() if losses.bit_count() > 1]
        several.sort(key=lambda p: order.get(p, len(order)))
        self._several = several if self._given is None else self._given
        shared = set(self._several)
        apart = [(leaf, losses) for leaf, losses in self.leaves if leaf not in shared]
        self.own = [[leaf for leaf, losses in apart if losses >> i & 1] for i in range(self._last[0])]

    def exchange(self) -> None:
        """Add what all other processes know.

        Raises:
            ValueError: If a parameter has no name.
        """
        self._name_all()
        known = {*self._names, *(self._given or ())}
        if unnamed := [p for p in self.reaching if p not in known]:
            raise ValueError(
                f"{len(unnamed)} parameters are not part of the model that Step was given, and several processes "
                "need a name for each; pass model= with all of them."
            )
        if self._given is None:
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, self.state_dict())
            for state in everyone:
                self.load_state_dict(state)
        self.agreed = True

    def named(self) -> dict[str, Tensor]:
        """Return the model's parameters by name."""
        model, kept = {} if self._model is None else self._model, self.kept or {}
        named = model.named_parameters() if isinstance(model, nn.Module) else model.items()
        return {name: kept.get(p, p) for name, p in named}

    def trained(self) -> list[Tensor]:
        """Return the model's parameters.

        Raises:
            ValueError: If there is no model.
        """
        if self._model is None:
            raise ValueError("several processes need a name for each parameter; pass model= to Step.")
        return list(self.named().values())

    def name(self, parameter: Tensor) -> str:
        """Return a parameter's name in the model, or its index if it has none."""
        return self._names.get(parameter) or str([id(p) for p in self.reaching].index(id(parameter)))

    def state_dict(self) -> dict[str, int]:
        """Return the sets of losses by the parameters' names.

        Raises:
            ValueError: If the sets have changed between steps, and parameters have no names.
        """
        if self._given is not None:
            return {}
        if self._model is None and self._grew:
            raise ValueError(
                "which losses reach which parameters has changed between steps, and without names it cannot be "
                "saved; pass model= to Step."
            )
        return {self._names[p]: losses for p, losses in self.reaching.items() if p in self._names}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from :meth:`state_dict`."""
        self._name_all()
        for p, name in self._names.items():
            if name in state:
                self.reaching[p] = self.reaching.get(p, 0) | state[name]
        self._divide()
        self.shared = [p for p in self._several if p.requires_grad]
