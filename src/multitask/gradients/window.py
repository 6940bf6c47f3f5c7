"""The micro-batches of one step, on all processes: means of losses and of gradients, weighted by counts."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.accumulated import AccumulatedRows
from multitask.gradients.features import Features
from multitask.gradients.graph import Graph
from multitask.gradients.losses import Losses
from multitask.gradients.own import OwnGradients
from multitask.gradients.ownership import Ownership
from multitask.gradients.pulls import Pulls
from multitask.gradients.task_gradients import Engine, TaskGradients

Counts = float | Tensor | Sequence[float | Tensor] | Mapping[str, float | Tensor] | None
"""How many elements mean losses are over: one number for all, or one per loss; ``[parts, m]`` where losses are."""


class Window:
    """Gathers the micro-batches of a step.

    Every mean is a running one: a micro-batch of count c after others of count C moves it by c / (C + c)
    of the difference. So no total has to be known in advance, and a single micro-batch is taken as it is.

    Args:
        engine: How the Jacobian of a single batch is computed.
        ownership: Which parameters are shared.
    """

    def __init__(self, engine: Engine, ownership: Ownership) -> None:
        self._engine = engine
        self._ownership = ownership
        self._sum = engine if isinstance(engine, Features) else AccumulatedRows()
        self.own = OwnGradients()
        self.clear()

    def clear(self) -> None:
        """Start a new step."""
        self._sum.clear()
        self.own.clear()
        self.losses: Tensor | None = None
        """Mean losses, shape ``[parts, m]``."""
        self.counts: Tensor | None = None
        """Their counts, of this process until :meth:`close`, shape ``[parts, m]``, on the CPU."""
        self.names: list[str] = []
        self.gradients: TaskGradients | None = None
        """The rows' gradients, ``parts · len(tasks)`` of them."""
        self.tasks: list[int] = []
        """The tasks that have rows."""
        self.last: Losses | None = None
        """The losses of the last micro-batch, and the graph behind them."""
        self.graph: Graph | None = None
        self._parts: list[float] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no micro-batch has been added."""
        return self.losses is None

    @property
    def device(self) -> torch.device:
        """The device of the losses."""
        assert self.losses is not None
        return self.losses.device

    def add(self, losses: Losses, counts: Counts, last: bool) -> None:
        """Add a micro-batch, and on several processes with the last one the others' too.

        Raises:
            ValueError: If losses of single examples come in several micro-batches or processes, or if the
                number of losses changed.
        """
        here = counts_of(counts, losses)
        if self.losses is not None and self.losses.shape != losses.values.shape:
            raise ValueError(
                f"losses are {list(losses.values.shape)} and were {list(self.losses.shape)} in this step; an absent "
                "loss has a count of zero."
            )
        whole = last and self.is_empty and processes() == 1
        if losses.of_examples and not whole:
            raise ValueError("losses of single examples need the whole batch in one call on one process.")
        graph = self._look(losses)
        before = torch.zeros_like(here) if self.counts is None else self.counts
        first, self.counts = self.counts is None, before + here
        tasks = [i for i in range(losses.m) if bool((here[:, i] > 0).all())]
        shares = (here / self.counts.clamp(min=torch.finfo(here.dtype).tiny)).tolist()
        self.names, self.last = losses.names, losses
        if last:
            self._agree()
        pulls = Pulls(losses, graph, self._own_of(losses), tasks, retain_graph=losses.of_examples)
        if whole:
            self._add_whole(losses, pulls)
        else:
            self._add_part(losses, pulls, shares, first)

    def add_weighted(self, losses: Losses, counts: float | None, last: bool, weights: Tensor) -> None:
        """Add a micro-batch whose losses have the same weights in every micro-batch, and one count: one backward pass.

        The gradients are left in row 0 of ``own``, whatever the losses reach.
        """
        here = counts_of(counts, losses)
        self.counts = here if self.counts is None else self.counts + here
        share = float(here[0, 0] / self.counts[0, 0].clamp(min=torch.finfo(here.dtype).tiny))
        self._look(losses)
        self.names, self.last = losses.names, losses
        if last:
            self._agree()
        leaves = self._ownership.leaves()
        edges, seeds = losses.combination(weights.view(1, -1))
        found = self.own.differentiate(edges, seeds, leaves) if share > 0 else [None] * len(leaves)
        self.own.add(0, leaves, found, share)
        if self.losses is None:
            self.losses = losses.values if share > 0 else torch.zeros_like(losses.values)
        elif share > 0:
            self.losses = self.losses.lerp(losses.values, share)

    def _look(self, losses: Losses) -> Graph:
        """Find out which losses reach which parameters."""
        self.graph = graph = Graph(losses.edges())
        self._ownership.find(graph, losses.m)
        self.own.from_python = graph.runs_python()
        return graph

    def own_of_examples(self, weights: Tensor) -> None:
        """Differentiate the losses of examples with weights, ``[parts, m]``: the gradients are left in row 0."""
        assert self.last is not None
        leaves = [p for of_task in self._ownership.own() for p in of_task]
        edges, seeds = self.last.combination(weights)
        self.own.add(0, leaves, self.own.differentiate(edges, seeds, leaves))

    def _own_of(self, losses: Losses) -> list[list[Tensor]]:
        """Return the tasks' own parameters; those of examples' losses are differentiated at the end, all at once."""
        return [[] for _ in range(losses.m)] if losses.of_examples else self._ownership.own()

    def _add_whole(self, losses: Losses, pulls: Pulls) -> None:
        self.losses, self.tasks = losses.values, pulls.tasks
        if not pulls.tasks:
            return
        self.gradients = self._engine.differentiate(pulls, self._ownership.shared())
        for number, gradients in pulls.own.items():
            task = pulls.task_of(number)
            row = number // len(pulls.tasks) * losses.m + task
            self.own.add(row, pulls.parameters[task], gradients)

    def _add_part(self, losses: Losses, pulls: Pulls, shares: list[list[float]], first: bool) -> None:
        m, k = losses.m, losses.values.numel()
        by_row = [share for part in shares for share in part]
        shared = self._ownership.shared()
        self._sum.lay_out(shared)
        for row, parameter, gradient in self.own.take(shared):
            self._sum.put(row, parameter, gradient)
        width = max(len(pulls.tasks), 1)
        numbers = {number // width * m + pulls.task_of(number): number for number in range(len(pulls))}
        passes = {row: (pulls, number) for row, number in numbers.items()}
        self.gradients = self._sum.add(k, passes, shared, by_row, self._parts if shared else None)
        self.tasks = list(range(m))
        for row, number in numbers.items():
            gradients = pulls.own.get(number, [])
            self.own.add(row, pulls.parameters[row % m][: len(gradients)], gradients, by_row[row])
        share = torch.tensor(shares).to(losses.values)
        values = losses.values.where(share > 0, 0.0)
        self.losses = values if first or self.losses is None else self.losses.lerp(values, share)

    def _agree(self) -> None:
        """Find out what all processes have: the counts of the step, and which parameters are shared."""
        if processes() == 1:
            return
        assert self.counts is not None
        assert self.last is not None
        device = self.last.values.device
        changed = float(not self._ownership.agreed)
        message = torch.tensor([*self.counts.flatten().tolist(), changed], device=device, dtype=torch.float64)
        dist.all_reduce(message)
        *totals, changed_anywhere = message.tolist()
        if changed_anywhere:
            self._ownership.exchange(device)
        total = torch.tensor(totals, dtype=torch.float64).view_as(self.counts)
        self._parts = (self.counts / total.clamp(min=torch.finfo(total.dtype).tiny)).flatten().tolist()
        self.counts = total

    def close(self) -> None:
        """Make losses and own gradients those of all processes."""
        if processes() == 1:
            return
        if self._parts is None:
            raise ValueError(
                "on several processes the last micro-batch of a step goes to backward, not to add."
            )
        assert self.losses is not None
        self.losses = self.losses * torch.tensor(self._parts).view_as(self.losses).to(self.losses)
        dist.all_reduce(self.losses)

    def part(self, row: int) -> float:
        """Return the part of this process in a row's mean over all processes."""
        return 1.0 if self._parts is None else self._parts[row]


def counts_of(counts: Counts, losses: Losses) -> Tensor:
    """Return counts as numbers on the CPU, ``[parts, m]``; all ones by default.

    Raises:
        ValueError: If they are not one per loss, negative, or of other names.
    """
    shape = losses.values.shape
    if counts is None or isinstance(counts, int | float):
        return torch.full(shape, 1.0 if counts is None else float(counts), dtype=torch.float64)
    if isinstance(counts, Mapping):
        if list(counts) != losses.names:
            raise ValueError(f"counts are of {', '.join(counts)} and losses of {', '.join(losses.names)}.")
        counts = list(counts.values())
    if isinstance(counts, Tensor):
        given = counts.detach()
    else:
        there = [torch.as_tensor(count, dtype=torch.float64) for count in counts]
        given = torch.stack([count.to(losses.values.device) for count in there], -1)
    given = given.double().cpu()
    given = given.expand(shape) if given.ndim < len(shape) else given
    if given.shape != shape or not bool((given >= 0).all()):
        raise ValueError(f"counts must be one number ≥ 0 per loss, {list(shape)}; they are {counts}.")
    return given


def processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
