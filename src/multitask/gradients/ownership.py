"""Which parameters are shared, and which one loss alone reaches: read off every step's graph, and only growing."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multitask.gradients.graph import Graph
from multitask.gradients.rows import real_shape


class Ownership:
    """The losses that have reached each parameter so far.

    A parameter is shared once a second loss has reached it, in any micro-batch, on any process, in this step
    or an earlier one. Routing may differ from batch to batch: a parameter that is one task's own in one batch
    can be shared in the next.

    Args:
        model: What is trained, for the order and the names of the parameters: a module, or tensors by name.
            Every ``nn.Parameter`` that a loss reaches counts, named or not; other tensors only if named.
        shared: The shared parameters, if they are not to be found from the graph. All others then belong to
            every loss that reaches them.
    """

    def __init__(
        self, model: nn.Module | Mapping[str, Tensor] | None = None, shared: Iterable[Tensor] | None = None
    ) -> None:
        self._model = model
        self._given = None if shared is None else list(shared)
        self._reaching: dict[int, int] = {}
        self._found: dict[int, Tensor] = {}
        """Parameters in the order in which they were first reached."""
        self._names: dict[int, str] = {}
        self._shared: list[Tensor] | None = None
        self._leaves: list[tuple[Tensor, int]] = []
        self._seen: list[tuple[int, int]] = []
        self._own: list[list[Tensor]] = []
        self._m = 0
        self.agreed = True
        """Whether all that this process has found was in the last :meth:`exchange`."""
        self._grew = False

    def find(self, graph: Graph, m: int) -> None:
        """Record which of m losses reach which parameters in a graph."""
        leaves = [(id(leaf), losses) for leaf, losses in graph.leaves]
        if leaves == self._seen and self._shared is not None:
            return
        self._seen = leaves
        new = False
        for leaf, losses in graph.leaves:
            known = self._reaching.get(id(leaf))
            if known is None:
                if not self._is_trained(leaf):
                    continue
                self._found[id(leaf)] = leaf
            if known is None or losses & ~known:
                self._reaching[id(leaf)] = losses | (known or 0)
                new = True
        if new:
            self._grew = self._grew or bool(self._m)
            self._shared, self.agreed = None, False
        self._m = m
        self._leaves = graph.leaves
        self._divide()

    def _is_trained(self, leaf: Tensor) -> bool:
        if id(leaf) not in self._names:
            self._name_all()
        return isinstance(leaf, nn.Parameter) or id(leaf) in self._names

    def named(self) -> Iterable[tuple[str, Tensor]]:
        """Return the model's parameters by name."""
        if self._model is None:
            return []
        return self._model.named_parameters() if isinstance(self._model, nn.Module) else self._model.items()

    def _name_all(self) -> None:
        self._names = {id(p): name for name, p in self.named()}

    def _divide(self) -> None:
        shared = {id(p) for p in self.shared()}
        self._own = [[] for _ in range(self._m)]
        for leaf, losses in self._leaves:
            if id(leaf) not in shared and id(leaf) in self._reaching:
                while losses:
                    self._own[(losses & -losses).bit_length() - 1].append(leaf)
                    losses &= losses - 1

    def exchange(self, device: torch.device) -> None:
        """Add what all other processes have found.

        Raises:
            ValueError: If parameters have no names by which processes could speak of them.
        """
        if self._given is not None:
            return
        self._name_all()
        unnamed = [key for key in self._found if key not in self._names]
        if unnamed:
            raise ValueError(
                f"{len(unnamed)} parameters are not part of the model that Step was given, and several processes "
                "need a name for each; pass model= with all of them."
            )
        words = -(-self._m // 62)
        mine = [
            [self._reaching.get(key, 0) >> 62 * w & (1 << 62) - 1 for w in range(words)] for key in self._names
        ]
        sent = torch.tensor(mine, dtype=torch.int64, device=device).view(len(mine), words)
        received = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
        dist.all_gather(received, sent)
        by_key = dict(self._parameters_by_key())
        for found in received:
            for key, row in zip(self._names, found.tolist(), strict=True):
                losses = sum(word << 62 * w for w, word in enumerate(row))
                if losses:
                    self._found.setdefault(key, by_key[key])
                    self._reaching[key] = self._reaching.get(key, 0) | losses
        self._shared, self.agreed = None, True
        self._divide()

    def _parameters_by_key(self) -> Iterable[tuple[int, Tensor]]:
        return ((id(p), p) for _, p in self.named())

    def own(self) -> list[list[Tensor]]:
        """Return for each loss the parameters of the last graph that it reaches and that are not shared."""
        return self._own

    def leaves(self) -> list[Tensor]:
        """Return the parameters that the last graph reaches."""
        return [leaf for leaf, _ in self._leaves if id(leaf) in self._reaching]

    def candidates(self) -> list[Tensor]:
        """Return all trainable parameters of the model that are not shared."""
        shared = {id(p) for p in self.shared()}
        return [p for key, p in self._parameters_by_key() if key not in shared and p.requires_grad]

    def shared(self) -> list[Tensor]:
        """Return the shared parameters, in the order of the model, and those without a name as they were found."""
        if self._shared is None:
            several = [p for key, p in self._found.items() if self._reaching[key] & (self._reaching[key] - 1)]
            order = {key: i for i, key in enumerate(self._names)}
            several.sort(key=lambda p: order.get(id(p), len(order)))
            self._shared = several if self._given is None else self._given
        return [p for p in self._shared if p.requires_grad]

    def state_dict(self) -> dict[str, int]:
        """Return the losses that have reached each parameter, by its name.

        Raises:
            ValueError: If these depend on the data, and parameters have no names.
        """
        if self._given is not None:
            return {}
        if self._model is None:
            if self._grew:
                raise ValueError(
                    "which losses reach which parameters has changed between steps, and without names it cannot be "
                    "saved; pass model= to Step."
                )
            return {}
        return {self.name(p): self._reaching[key] for key, p in self._found.items() if key in self._names}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from what had been found."""
        self._name_all()
        by_name = {name: key for key, name in self._names.items()}
        parameters = dict(self._parameters_by_key())
        for name, losses in state.items():
            if name in by_name:
                key = by_name[name]
                self._found[key] = parameters[key]
                self._reaching[key] = self._reaching.get(key, 0) | losses
        self._shared = None

    def name(self, parameter: Tensor) -> str:
        """Return a parameter's name in the model, or its number among those found without one."""
        if id(parameter) in self._names:
            return self._names[id(parameter)]
        return str(list(self._found).index(id(parameter)))

    def layout(self, graph: Graph | None, m: int) -> "Layout":
        """Return the Jacobian's columns, to be read when a weighting asks for them."""
        return Layout(self, graph, m)


class Layout:
    """The columns of the Jacobian: which parameter each belongs to, and how far from the losses that one is.

    Args:
        ownership: Tells what is shared.
        graph: The graph of the step's last micro-batch.
        m: How many losses there are.
    """

    def __init__(self, ownership: Ownership, graph: Graph | None, m: int) -> None:
        self._ownership = ownership
        self._graph = graph
        self._m = m

    def parameters(self) -> list[tuple[str, int]]:
        """Return name and size of each shared parameter."""
        return [(self._ownership.name(p), real_shape(p).numel()) for p in self._ownership.shared()]

    def distances(self) -> list[int | None]:
        """Return how many operations lie between losses and each parameter; ``None`` unless all losses reach it."""
        if self._graph is None:
            return [None] * len(self._ownership.shared())
        distances, reaching = self._graph.distances(), dict(self._graph.reaching_leaves())
        every = 0
        for losses in reaching.values():
            every |= losses
        return [
            distances[id(p)] if reaching.get(id(p), 0) == every else None for p in self._ownership.shared()
        ]
