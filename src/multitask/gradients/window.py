"""The micro-batches of one step on all processes: means of losses and gradients, weighted by counts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.graph import Graph, Ownership
from multitask.gradients.losses import Counts, Losses, Pulls, counts_of, gradients_at
from multitask.gradients.processes import sum_over_processes
from multitask.gradients.rows import (
    StoredGradients,
    add_to_gradients,
    dense,
    local,
    processes,
    real_shape,
    sent,
    widened,
)
from multitask.gradients.sharded import ShardedEngine, ShardedPulls, Shards
from multitask.gradients.task_gradients import Engine, MicroBatch, TaskGradients


class Window:
    """Adds up the micro-batches of a step.

    The mean loss of a row over c elements and its gradient enter with the weight c / u, where the unit u is the first
    count of the row. A sum over C elements, times u / C, is the mean: a single micro-batch is left unchanged, and no
    total needs to be known in advance.

    Args:
        engine: Computes the Jacobian.
        ownership: Knows which parameters are shared.
        shards: The parameters sharded over processes, each micro-batch of which is one of all processes.
    """

    def __init__(self, engine: Engine, ownership: Ownership, shards: Shards | None = None) -> None:
        self._engine = engine if shards is None else ShardedEngine(shards)
        self._ownership = ownership
        self._shards = shards
        self._pulls = Pulls if shards is None else partial(ShardedPulls, shards)
        self.clear()

    def clear(self) -> None:
        """Start a new step."""
        self.begun = False
        self.losses = torch.empty(0, 0)
        """The sum of the losses, and after :meth:`close` their mean, ``[parts, m]``."""
        self.own = OwnGradients()
        self._graph: Graph | None = None
        """The graph of the last micro-batch."""
        self._of_examples: Losses | None = None
        """Losses of examples, whose own parameters get their gradients at the end, in one pass."""
        self.shares = False
        """Whether a parameter is shared."""
        self.wanted: list[int] | None = None
        """The losses whose rows are computed; ``None`` for all."""
        self.present: list[int] = []
        """After :meth:`close`, the losses with an element in every part."""
        self._rows: list[int] = []
        """Their rows, part by part."""
        self._counts: list[float] = []
        """This process's counts, ``[parts · m]``; with the last micro-batch, those of all processes."""
        self._units: list[float] = []
        self._several = False
        """Whether other processes have micro-batches of their own."""
        self._factors: list[float] = []
        """The factor of each row's sum in the mean, once the counts of all processes are known."""
        self._engine.clear()

    def add(self, losses: Losses, counts: Counts, last: bool, weights: Tensor | None = None) -> None:
        """Add a micro-batch; the last one also synchronizes the processes.

        Given the weights of losses that all have one count, ``[m]``, one pass of the weighted losses suffices: row 0 of
        ``own`` gets the gradients of all parameters.

        Raises:
            ValueError: If losses of examples, or those of an engine other than ``rows``, come in several micro-batches
                or on several processes, or if the number of losses changed.
        """
        graph, shares = self._look(losses, counts, last)
        alone = last and not self.begun and not self._several
        self.begun = True
        if weights is not None:
            leaves = [leaf for leaf, _ in self._ownership.leaves] if shares[0] > 0 else []
            pulls = self._pulls(losses, graph)
            self.own.add(0, leaves, pulls.gradients_from(0, losses.combination(weights), leaves), shares[0])
            return
        if losses.of_examples and not alone:
            raise ValueError("losses of single examples need the whole batch in one call on one process.")
        if self._engine.memory != "rows" and not alone:
            raise ValueError(
                f"weighting.memory={self._engine.memory} needs the whole batch in one call on one process; set "
                "weighting.memory=rows."
            )
        own = None if losses.of_examples else self._ownership.own
        shared = self._ownership.shared
        some = all if losses.of_examples else any
        tasks = [i for i in range(losses.m) if some(share > 0 for share in shares[i :: losses.m])]
        wanted = tasks if self.wanted is None else [i for i in tasks if i in self.wanted]
        rows = [row for row, share in enumerate(shares) if share > 0 and row % losses.m in wanted]
        pulls = self._pulls(losses, graph, own, rows, losses.of_examples)
        for task in set(tasks).difference(wanted):
            pulls.pull(task, [], last=False)  # only for the task's own parameters
        self.shares = bool(shared)
        if not alone:
            self._engine.lay_out(shared, self.own.take(shared))
        factors = self._factors if shared and last and self._several else None
        if pulls.rows or not alone:
            self._engine.add(MicroBatch(pulls, shared, shares, factors, self.wanted, alone))
        for row, gradients in pulls.own.items():
            self.own.add(row, pulls.parameters[row % losses.m], gradients, shares[row])

    def _look(self, losses: Losses, counts: Counts, last: bool) -> tuple[Graph, list[float]]:
        """Find which losses reach which parameters, and add the losses; return the graph and the weight of each row.

        The last time, the processes exchange the counts, and which parameters are shared.
        """
        of_batch = counts_of(counts, losses)
        if self.begun and self.losses.shape != losses.values.shape:
            raise ValueError(
                f"losses are {list(losses.values.shape)} and were {list(self.losses.shape)} in this step; an absent "
                "loss has a count of zero."
            )
        shards, ownership = self._shards, self._ownership
        self._of_examples = losses if losses.of_examples else None
        self._graph = graph = Graph(losses.edges(), ownership.kept)
        ownership.find(graph, losses.m)
        self.own.from_python = bool(graph.python)
        self._several = processes() > 1 and shards is None
        if shards is not None:
            of_batch = shards.agree(losses, of_batch, [(ownership.name(p), by) for p, by in ownership.leaves])
        zeros = [0.0] * len(of_batch)
        self._units = [unit or count for unit, count in zip(self._units or zeros, of_batch, strict=True)]
        self._counts = [a + b for a, b in zip(self._counts or zeros, of_batch, strict=True)]
        weights = [count / (unit or 1.0) for count, unit in zip(of_batch, self._units, strict=True)]
        if self._several and last:
            message = [*self._counts, float(not ownership.agreed)]
            everywhere = torch.tensor(message, device=losses.values.device, dtype=torch.float64)
            dist.all_reduce(everywhere)
            *self._counts, changed = everywhere.tolist()
            if changed:
                ownership.exchange()
        if last or not self._several:
            pairs = zip(self._units, self._counts, strict=True)
            self._factors = [unit / (count or 1.0) for unit, count in pairs]
        # Of one dtype on all processes, however many micro-batches they have.
        values = _times(widened(losses.values) if self._several else losses.values, weights)
        self.losses = widened(self.losses) + values if self.begun else values
        return graph, weights

    def close(self) -> None:
        """Turn the sum of the losses into their mean over all processes."""
        if not self._factors:
            raise ValueError(
                "on several processes the last micro-batch of a step goes to backward, not to add."
            )
        m = self.losses.shape[1]
        self.present = [i for i in range(m) if all(count > 0 for count in self._counts[i::m])]
        self._rows = [row for row in range(len(self._counts)) if row % m in self.present]
        self.losses = _times(self.losses, self._factors)
        if self._several:
            dist.all_reduce(self.losses)

    def gradients(self, scale: Tensor | None) -> "ShownGradients":
        """Return the gradients of the present losses, divided by the scalar tensor ``scale``."""
        assert self._graph is not None
        rows = self._rows if self.wanted is None else self.wanted
        # Other processes have got the rows times their factors already.
        factors = [1.0] * len(rows) if self._several else [self._factors[row] for row in rows]
        gradients = self._engine.gradients(rows, factors)
        return ShownGradients(gradients, scale, self._ownership, self._graph, self.losses.device)

    def write_own(self, weights: Tensor) -> None:
        """Add the own parameters' mean gradients, times weights of the rows of present losses, to ``.grad``."""
        rows = self._rows
        if self._of_examples is not None:
            matrix = torch.zeros_like(self.losses).flatten()
            matrix[rows] = weights.to(matrix)
            leaves = list(dict.fromkeys(p for i in self.present for p in self._ownership.own[i]))
            self.own.add(rows[0], leaves, gradients_at(*self._of_examples.combination(matrix), leaves))
            rows, weights = rows[:1], torch.ones(1)
        numbers = weights.tolist() if weights.device.type == "cpu" else weights.unbind()
        pairs = zip(rows, numbers, strict=True)
        own = self.own.weighted({row: number * self._factors[row] for row, number in pairs})
        if self._several:
            shared = set(self._ownership.shared if self.shares else ())
            candidates = [p for p in self._ownership.trained() if p.requires_grad and p not in shared]
            own = sum_over_processes(own, candidates)
        add_to_gradients(list(own), list(own.values()))


def _times(losses: Tensor, factors: Sequence[float]) -> Tensor:
    """Return losses, ``[parts, m]``, times factors, ``[parts · m]``; one with a factor of zero may be NaN."""
    if all(factor == 1.0 for factor in factors):
        return losses
    losses = widened(losses)
    each = sent(torch.tensor(factors, dtype=losses.dtype), losses.device).view_as(losses)
    return losses.where(each > 0, 0.0) * each


class OwnGradients:
    """The sums over micro-batches of the gradients of each row's own parameters."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[Tensor, Tensor]] = {}
        self._memory: set[int] = set()
        self.from_python = False
        """Whether functions written in Python compute gradients: they may return memory that is still in use."""

    def add(
        self, row: int, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], weight: float = 1.0
    ) -> None:
        """Add a micro-batch's gradients of a row, ``None`` if not reached, times a weight."""
        sums = self._rows.setdefault(row, {})
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            if p in sums:
                sums[p] = widened(sums[p].to_dense()).add_(gradient.to_dense(), alpha=weight)
            else:
                sums[p] = self._apart(p, gradient) if weight == 1.0 else widened(gradient.to_dense()) * weight

    def take(self, shared: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Remove and yield row, parameter and gradient of parameters that have become shared."""
        for row, gradients in self._rows.items():
            for p in gradients.keys() & set(shared):
                yield row, p, gradients.pop(p)

    def weighted(self, factors: Mapping[int, float | Tensor]) -> dict[Tensor, Tensor]:
        """Return the sum over rows of gradient times factor."""
        total: dict[Tensor, Tensor] = {}
        for row, factor in factors.items():
            for p, gradient in self._rows.get(row, {}).items():
                if isinstance(factor, Tensor):
                    gradient = gradient * factor.to(device=gradient.device, dtype=gradient.dtype.to_real())
                elif factor != 1.0:
                    gradient = gradient * factor
                total[p] = total[p] + gradient if p in total else gradient
        return total

    def all(self) -> list[Tensor]:
        """Return the values of all gradients as real tensors."""
        each = [gradient for row in self._rows.values() for gradient in row.values()]
        return [dense(g._values() if g.is_sparse else g) for g in each]

    def _apart(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return a gradient with its parameter's strides in memory of its own: autograd may return views."""
        if gradient.is_sparse:
            return gradient.clone()
        new = gradient.data_ptr() not in self._memory and not self.from_python
        if hasattr(parameter, "to_local"):
            parameter = local(parameter)
        if not new or gradient.stride() != parameter.stride() or gradient._is_view():
            gradient = torch.empty_like(parameter).copy_(gradient)
        self._memory.add(gradient.data_ptr())
        return gradient


@dataclass(eq=False)
class ShownGradients(TaskGradients):
    """What a weighting sees: gradients without the loss scale, a scalar tensor, and the names of their columns.

    ``.grad`` remains scaled for the loss scaler. ``graph`` is that of the last micro-batch, ``device`` the losses'.
    """

    _gradients: TaskGradients
    _scale: Tensor | None
    _ownership: Ownership
    _graph: Graph
    _device: torch.device
    _gramian: Tensor | None = None

    @property
    def layout(self) -> Sequence[tuple[str, int]]:  # type: ignore[override]
        return [(self._ownership.name(p), p.numel() * (1 + p.is_complex())) for p in self._ownership.shared]

    @property
    def distances(self) -> Sequence[int | None]:  # type: ignore[override]
        return self._graph.distances(self._ownership.shared)

    @property
    def local(self) -> TaskGradients:
        """This process's columns, with sharded parameters fewer than all; their losses have no scale."""
        own = self._gradients.local
        if not isinstance(own, StoredGradients) or own is self._gradients:
            return self
        own.layout = [(self._ownership.name(p), real_shape(p).numel()) for p in own.parameters]
        own.distances = self._graph.distances(own.parameters)
        return own

    def gramian(self) -> Tensor:
        """Return the unscaled Gramian, divided twice since the square of the scale may overflow."""
        if self._gramian is None:
            gramian = self._gradients.gramian()
            self._gramian = gramian if self._scale is None else gramian / self._scale / self._scale
        return self._gramian

    def show(self, gramian: Tensor) -> None:
        """Replace the Gramian by a copy of it on the CPU."""
        self._gramian = gramian

    def combine(self, weights: Tensor) -> None:
        self._gradients.combine(sent(weights, self._device))

    def jacobian(self) -> Tensor:
        jacobian = self._gradients.jacobian()
        return jacobian if self._scale is None else jacobian / self._scale

    def assign(self, vector: Tensor) -> None:
        self._gradients.assign(vector if self._scale is None else vector * self._scale)
