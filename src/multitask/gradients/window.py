"""The micro-batches of one step, on all processes: means of losses and of gradients, weighted by counts."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.accumulated import AccumulatedRows
from multitask.gradients.features import Features
from multitask.gradients.graph import Graph, Ownership
from multitask.gradients.losses import Losses, Pulls
from multitask.gradients.rows import add_to_gradients, numbers, row_like, split_like
from multitask.gradients.task_gradients import Engine, TaskGradients

# Keeps a mean over nothing from dividing by zero.
_TINY = 1e-300

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
        self._added = False
        self.own = OwnGradients()
        self.clear()

    def clear(self) -> None:
        """Start a new step."""
        if self._added:
            self._sum.clear()
        self._added = False
        self.own.clear()
        self.losses: Tensor | None = None
        """Mean losses, shape ``[parts, m]``."""
        self.counts: list[list[float]] = []
        """Their counts, of this process until the last micro-batch, ``[parts, m]``."""
        self.names: list[str] = []
        self.gradients: TaskGradients | None = None
        """The rows' gradients, ``parts · len(tasks)`` of them."""
        self.shares = False
        """Whether several losses reach a parameter."""
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
        shares = self._count(here)
        graph = self._look(losses, last)
        tasks = [i for i in range(losses.m) if all(part[i] > 0 for part in here)]
        # Own parameters of examples' losses are differentiated at the end, all at once.
        own = [[] for _ in range(losses.m)] if losses.of_examples else self._ownership.own()
        pulls = Pulls(losses, graph, own, tasks, retain_graph=losses.of_examples)
        if whole:
            self._add_whole(losses, pulls)
        else:
            self._add_part(losses, pulls, shares)

    def add_weighted(self, losses: Losses, counts: float | None, last: bool, weights: Tensor) -> None:
        """Add a micro-batch whose losses have the same weights in every micro-batch, and one count: one backward pass.

        The gradients are left in row 0 of ``own``, whatever the losses reach.
        """
        share = self._count(counts_of(counts, losses))[0]
        self._look(losses, last)
        leaves = self._ownership.leaves()
        edges, seeds = losses.combination(weights.view(1, -1))
        found = self.own.differentiate(edges, seeds, leaves) if share > 0 else [None] * len(leaves)
        self.own.add(0, leaves, found, share)
        if self.losses is None:
            self.losses = losses.values if share > 0 else torch.zeros_like(losses.values)
        elif share > 0:
            self.losses = self.losses.lerp(losses.values, share)

    def _count(self, here: list[list[float]]) -> list[float]:
        """Add a micro-batch's counts, and return its part in the mean of each row."""
        self.counts = here if not self.counts else _added(self.counts, here)
        pairs = zip(here, self.counts, strict=True)
        return [
            c / max(total, _TINY) for part, totals in pairs for c, total in zip(part, totals, strict=True)
        ]

    def _look(self, losses: Losses, last: bool) -> Graph:
        """Find out which losses reach which parameters, with the last micro-batch on all processes."""
        self.graph = graph = Graph(losses.edges())
        self._ownership.find(graph, losses.m)
        self.own.from_python = graph.runs_python()
        self.names, self.last = losses.names, losses
        if last and processes() > 1:
            self._agree(losses.values.device)
        return graph

    def own_of_examples(self, weights: Tensor) -> None:
        """Differentiate the losses of examples with weights, ``[parts, m]``: the gradients are left in row 0."""
        assert self.last is not None
        leaves = [p for of_task in self._ownership.own() for p in of_task]
        edges, seeds = self.last.combination(weights)
        self.own.add(0, leaves, self.own.differentiate(edges, seeds, leaves))

    def _add_whole(self, losses: Losses, pulls: Pulls) -> None:
        self.losses, self.tasks = losses.values, pulls.tasks
        if not pulls.tasks:
            return
        self._added = isinstance(self._engine, Features)
        shared = self._ownership.shared()
        self.shares = bool(shared)
        self.gradients = self._engine.differentiate(pulls, shared)
        for number, gradients in pulls.own.items():
            part, place = divmod(number, len(pulls.tasks))
            task = pulls.tasks[place]
            row = part * losses.m + task
            self.own.add(row, pulls.parameters[task], gradients)

    def _add_part(self, losses: Losses, pulls: Pulls, shares: list[float]) -> None:
        m, k = losses.m, losses.values.numel()
        self._added = True
        shared = self._ownership.shared()
        self.shares = bool(shared)
        self._sum.lay_out(shared)
        for row, parameter, gradient in self.own.take(shared):
            self._sum.put(row, parameter, gradient)
        width = max(len(pulls.tasks), 1)
        numbers = {number // width * m + pulls.task_of(number): number for number in range(len(pulls))}
        passes = {row: (pulls, number) for row, number in numbers.items()}
        self.gradients = self._sum.add(k, passes, shared, shares, self._parts if shared else None)
        self.tasks = list(range(m))
        for row, number in numbers.items():
            gradients = pulls.own.get(number, [])
            self.own.add(row, pulls.parameters[row % m][: len(gradients)], gradients, shares[row])
        share = torch.tensor(shares).to(losses.values).view_as(losses.values)
        values = losses.values.where(share > 0, 0.0)
        self.losses = values if self.losses is None else self.losses.lerp(values, share)

    def _agree(self, device: torch.device) -> None:
        """Find out what all processes have: the counts of the step, and which parameters are shared."""
        here = [count for part in self.counts for count in part]
        message = torch.tensor([*here, float(not self._ownership.agreed)], device=device, dtype=torch.float64)
        dist.all_reduce(message)
        *total, changed = message.tolist()
        if changed:
            self._ownership.exchange(device)
        self._parts = [count / max(all_of_it, _TINY) for count, all_of_it in zip(here, total, strict=True)]
        m = len(self.counts[0])
        self.counts = [total[i : i + m] for i in range(0, len(total), m)]

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


def counts_of(counts: Counts, losses: Losses) -> list[list[float]]:
    """Return counts as numbers, ``[parts, m]``; all ones by default.

    Raises:
        ValueError: If they are not one per loss, negative, or of other names.
    """
    if counts is None or isinstance(counts, int | float):
        return [[1.0 if counts is None else float(counts)] * losses.m for _ in range(losses.parts)]
    if isinstance(counts, Mapping):
        if list(counts) != losses.names:
            raise ValueError(f"counts are of {', '.join(counts)} and losses of {', '.join(losses.names)}.")
        counts = list(counts.values())
    if not isinstance(counts, Tensor):
        there = [torch.as_tensor(count, dtype=torch.float64) for count in counts]
        counts = torch.stack([count.to(losses.values.device) for count in there], -1)
    given = counts.detach().double().cpu()
    shape = losses.values.shape
    given = given.expand(shape) if given.ndim < len(shape) else given
    if given.shape != shape or not bool((given >= 0).all()):
        raise ValueError(f"counts must be one number ≥ 0 per loss, {list(shape)}; they are {counts}.")
    return given.tolist()


def _added(counts: list[list[float]], more: list[list[float]]) -> list[list[float]]:
    return [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(counts, more, strict=True)]


def processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class OwnGradients:
    """Each row's gradients of its task's own parameters: means over micro-batches, kept until the step ends."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        self._memory: set[int] = set()
        self.from_python = False
        """Whether gradients come from functions written in Python, which may hand out what others still use."""

    def clear(self) -> None:
        """Forget everything."""
        self._rows, self._memory = {}, set()

    def add(
        self, row: int, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], share: float = 1.0
    ) -> None:
        """Add a micro-batch's gradients.

        Args:
            row: The row.
            parameters: The parameters of its task.
            gradients: Their gradients; ``None`` for those that were not reached.
            share: The part of this micro-batch in the mean so far.
        """
        new = {id(p): (p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None}
        old = self._rows.setdefault(row, {})
        if share == 1.0:
            self._rows[row] = {key: (p, self._apart(p, g)) for key, (p, g) in new.items()}
            return
        for key, (p, mean) in old.items():
            if key not in new:
                mean.mul_(1 - share)
            elif mean.is_sparse:
                old[key] = (p, _dense(mean).lerp_(_dense(new[key][1]), share))
            else:
                mean.lerp_(_dense(new[key][1]), share)
        for key, (p, gradient) in new.items():
            if key not in old:
                old[key] = (p, _dense(gradient) * share)

    @staticmethod
    def differentiate(
        edges: Sequence[GradientEdge], seeds: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """Return the gradients of parameters in one last backward pass."""
        if not edges or not parameters:
            return [None] * len(parameters)
        return torch.autograd.grad(edges, list(parameters), seeds, allow_unused=True)

    def take(self, shared: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Remove and yield row, parameter and gradient of what has become shared."""
        keys = {id(p) for p in shared}
        for row, gradients in self._rows.items():
            for key in keys & gradients.keys():
                yield row, *gradients.pop(key)

    def weighted(self, factors: Mapping[int, float | Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the sum of the rows' gradients times their factors, by parameter.

        Args:
            factors: The factor of each row that takes part.
        """
        total: dict[int, tuple[Tensor, Tensor]] = {}
        for row, factor in factors.items():
            plain = isinstance(factor, float) and factor == 1.0
            for key, (p, gradient) in self._rows.get(row, {}).items():
                term = gradient if plain else gradient * _as_weight(factor, gradient)
                total[key] = (p, total[key][1] + term if key in total else term)
        return total

    def all(self) -> list[Tensor]:
        """Return the numbers of all gradients, real ones."""
        return [_numbers(gradient) for row in self._rows.values() for _, gradient in row.values()]

    def _apart(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return a gradient in memory of its own, laid out as its parameter.

        Autograd hands out views, and to the two parameters of a sum one and the same tensor.
        """
        if gradient.is_sparse:
            return gradient.clone()
        new = gradient.data_ptr() not in self._memory and not self.from_python
        if not new or gradient.stride() != parameter.stride() or gradient._is_view():
            gradient = torch.empty_like(parameter).copy_(gradient)
        self._memory.add(gradient.data_ptr())
        return gradient


def write(gradients: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Add gradients to the ``.grad`` of their parameters."""
    add_to_gradients([p for p, _ in gradients.values()], [g for _, g in gradients.values()])


def sum_over_processes(
    gradients: Mapping[int, tuple[Tensor, Tensor]], candidates: Sequence[Tensor]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the sums over processes; where only some have a gradient, the others add zeros.

    Args:
        gradients: This process's.
        candidates: All parameters that could have one, in the same order on every process.
    """
    if not candidates:
        return {}
    there = torch.tensor([float(id(p) in gradients) for p in candidates], device=candidates[0].device)
    dist.all_reduce(there, op=dist.ReduceOp.MAX)
    some = [p for p, anywhere in zip(candidates, there.tolist(), strict=True) if anywhere]
    if not some:
        return {}
    flat = row_like(some).new_zeros(numbers(some))
    for p, view in zip(some, split_like(flat, some), strict=True):
        if id(p) in gradients:
            gradient = _dense(gradients[id(p)][1])
            view.copy_(torch.view_as_real(gradient) if gradient.is_complex() else gradient)
    dist.all_reduce(flat)
    return {id(p): (p, view) for p, view in zip(some, split_like(flat, some), strict=True)}


def _as_weight(factor: float | Tensor, like: Tensor) -> float | Tensor:
    return factor.to(device=like.device, dtype=like.dtype.to_real()) if isinstance(factor, Tensor) else factor


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _numbers(gradient: Tensor) -> Tensor:
    gradient = gradient._values() if gradient.is_sparse else gradient
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
