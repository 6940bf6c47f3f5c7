"""The micro-batches of one step on all processes: means of losses and gradients, weighted by counts."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.graph import Graph, Ownership
from multitask.gradients.losses import Losses, Pulls, gradients_at
from multitask.gradients.rows import (
    MicroBatch,
    Rows,
    StoredGradients,
    dense,
    local,
    processes,
    real_shape,
    sent,
)
from multitask.gradients.sharded import ShardedEngine, ShardedPulls, Shards
from multitask.gradients.stream import Streamed
from multitask.gradients.task_gradients import Engine, TaskGradients

# Avoids a division by zero in a mean over no elements.
_TINY = 1e-300

Counts = float | Tensor | Sequence[float | Tensor] | Mapping[str, float | Tensor] | None
"""The number of elements that each mean loss is over: one number for all, or one per loss, in the losses' shape."""


class Window:
    """Accumulates the micro-batches of a step.

    All means are running means: a micro-batch of count c after others of count C moves them by c / (C + c)
    of the difference. No total needs to be known in advance, and a single micro-batch is left unchanged.

    Args:
        engine: Computes the Jacobian of a single batch.
        ownership: Knows which parameters are shared.
        shards: The parameters sharded over processes, each micro-batch of which is one of all processes.
    """

    def __init__(self, engine: Engine, ownership: Ownership, shards: Shards | None = None) -> None:
        self._engine = engine
        self._ownership = ownership
        self._shards = shards
        if shards is not None:
            self._rows: Rows = ShardedEngine(shards)
        else:
            self._rows = engine if isinstance(engine, Rows) else Rows()
        self.own = OwnGradients()
        self._whole: TaskGradients | None = None
        self._before: TaskGradients | None = None
        self.clear()

    def clear(self) -> None:
        """Start a new step."""
        self.own.clear()
        whole, self._whole, self._before = self._whole, None, None
        if whole is not None and not whole.fresh and self.last is not None:
            # On a CPU, freeing and allocating memory is slow: the next step reuses what this one leaves.
            self._before = whole if self.last.values.device.type == "cpu" else None
        self.losses: Tensor | None = None
        """Mean losses, ``[parts, m]``."""
        self.counts: list[float] = []
        """Their counts, ``[parts · m]``: this process's; with the last micro-batch, those of all processes."""
        self.last: Losses | None = None
        """The losses of the last micro-batch, with their graph."""
        self.graph: Graph | None = None
        self.shares = False
        """Whether a parameter is shared."""
        self.wanted: list[int] | None = None
        """The losses whose rows are computed; ``None`` for all."""
        self._parts: list[float] | None = None
        self._rows.clear()

    @property
    def present(self) -> list[int]:
        """The losses with an element in every part."""
        m = 0 if self.losses is None else self.losses.shape[1]
        return [i for i in range(m) if all(count > 0 for count in self.counts[i::m])]

    @property
    def rows(self) -> list[int]:
        """The rows of the present losses, part by part."""
        parts, m = (0, 0) if self.losses is None else self.losses.shape
        present = self.present
        return [part * m + i for part in range(parts) for i in present]

    def add(self, losses: Losses, counts: Counts, last: bool) -> None:
        """Add a micro-batch; the last one also synchronizes the processes.

        Raises:
            ValueError: If losses of examples, or those of a streamed step, come in several micro-batches or on several
                processes, or if the number of losses changed.
        """
        of_batch = counts_of(counts, losses)
        if self.losses is not None and self.losses.shape != losses.values.shape:
            raise ValueError(
                f"losses are {list(losses.values.shape)} and were {list(self.losses.shape)} in this step; an absent "
                "loss has a count of zero."
            )
        whole = last and self.losses is None and processes() == 1 and self._shards is None
        if losses.of_examples and not whole:
            raise ValueError("losses of single examples need the whole batch in one call on one process.")
        if isinstance(self._engine, Streamed) and not whole:
            raise ValueError(
                f"weighting.memory={self._engine.memory} needs the whole batch in one call on one process; set "
                "weighting.memory=rows."
            )
        graph, of_batch, shares = self._look(losses, of_batch, last and not whole)
        # With losses of examples, own parameters get their gradients at the end, in one pass.
        own = None if losses.of_examples else self._ownership.own()
        shared = self._ownership.shared()
        tasks = [i for i in range(losses.m) if all(count > 0 for count in of_batch[i :: losses.m])]
        wanted = tasks if self.wanted is None else [i for i in tasks if i in self.wanted]
        if self._shards is not None:
            pulls: Pulls = ShardedPulls(self._shards, losses, graph, own, wanted)
        else:
            pulls = Pulls(losses, graph, own, wanted, retain_graph=losses.of_examples)
        for task in tasks if len(wanted) < len(tasks) else ():
            if task not in wanted:
                pulls.pass_of(task, last=False)([])  # only for the task's own parameters
        self.shares = bool(shared)
        if not whole:
            self._rows.lay_out(shared, self.own.take(shared))
            self._rows.add(MicroBatch(pulls, shared, shares, self._parts if shared else None, self.wanted))
        elif wanted:
            self._whole = self._engine.differentiate(pulls, shared)
        for row, gradients in pulls.own.items():
            self.own.add(row, pulls.parameters[row % losses.m], gradients, shares[row])
        self._add_losses(losses, shares)

    def add_weighted(self, losses: Losses, counts: float | None, last: bool, weights: Tensor) -> None:
        """Add a micro-batch, whose losses all have one count, by one backward pass of the weighted losses.

        Row 0 of ``own`` gets the gradients of all parameters.
        """
        of_batch = counts_of(counts, losses)
        _, _, shares = self._look(losses, of_batch, last)
        leaves = self._ownership.leaves() if shares[0] > 0 else []
        roots = losses.combination(weights.view(1, -1))
        if self._shards is not None:
            gradients = self._shards.gradients_at(roots, leaves, absent=of_batch[0] == 0)
        else:
            gradients = gradients_at(*roots, leaves)
        self.own.add(0, leaves, gradients, shares[0])
        self._add_losses(losses, shares)

    def _count(self, of_batch: list[float]) -> list[float]:
        """Add counts, and return the micro-batch's share in the mean of each row."""
        self.counts = [a + b for a, b in zip(self.counts or [0.0] * len(of_batch), of_batch, strict=True)]
        return [count / max(total, _TINY) for count, total in zip(of_batch, self.counts, strict=True)]

    def _look(
        self, losses: Losses, of_batch: list[float], on_all: bool
    ) -> tuple[Graph, list[float], list[float]]:
        """Find which losses reach which parameters, with the last micro-batch on all processes.

        Returns:
            The graph, the micro-batch's counts, and its share in the mean of each row.
        """
        shards = self._shards
        if shards is None:
            shares = self._count(of_batch)
        self.last, self.graph = losses, Graph(losses.edges(), self._ownership.kept)
        self._ownership.find(self.graph, losses.m)
        self.own.from_python = self.graph.runs_python()
        if shards is not None:
            of_batch = shards.agree(losses, of_batch, self._ownership.reached())
            shares = self._count(of_batch)
        elif on_all and processes() > 1:
            self._agree(losses.values.device)
        return self.graph, of_batch, shares

    def _add_losses(self, losses: Losses, shares: list[float]) -> None:
        if self.losses is None and all(share == 1.0 for share in shares):
            self.losses = losses.values
            return
        share = sent(torch.tensor(shares, dtype=losses.values.dtype), losses.values.device)
        share = share.view_as(losses.values)
        values = losses.values.where(share > 0, 0.0)
        self.losses = values if self.losses is None else self.losses.lerp(values, share)

    def _agree(self, device: torch.device) -> None:
        """Exchange the counts of the step, and which parameters are shared."""
        own = self.counts
        message = torch.tensor([*own, float(not self._ownership.agreed)], device=device, dtype=torch.float64)
        dist.all_reduce(message)
        *self.counts, changed = message.tolist()
        if changed:
            self._ownership.exchange()
        self._parts = [count / max(total, _TINY) for count, total in zip(own, self.counts, strict=True)]

    def close(self) -> None:
        """Replace this process's losses by those of all processes."""
        if self._whole is not None or processes() == 1 or self._shards is not None:
            return
        if self._parts is None:
            raise ValueError(
                "on several processes the last micro-batch of a step goes to backward, not to add."
            )
        assert self.losses is not None
        self.losses = self.losses * torch.tensor(self._parts).view_as(self.losses).to(self.losses)
        dist.all_reduce(self.losses)

    def gradients(self, scale: Tensor | None) -> "ShownGradients":
        """Return the gradients of the present losses, divided by the scalar tensor ``scale``."""
        assert self.graph is not None
        rows = self.rows if self.wanted is None else self.wanted
        gradients = self._rows.gradients(rows) if self._whole is None else self._whole
        assert self.losses is not None
        return ShownGradients(gradients, scale, self._ownership, self.graph, self.losses.device)

    def own_gradients(self, factors: Mapping[int, float | Tensor]) -> "ByParameter":
        """Return the sum over rows of the own parameters' gradients, times the factor of each row."""
        if self._parts is not None:
            factors = {row: factor * self._parts[row] for row, factor in factors.items()}
        return self.own.weighted(factors)


def counts_of(counts: Counts, losses: Losses) -> list[float]:
    """Return counts as numbers, ``[parts · m]``; all ones by default.

    Raises:
        ValueError: If they are not one per loss, are negative, or have other names.
    """
    if counts is None or isinstance(counts, int | float):
        return [1.0 if counts is None else float(counts)] * losses.values.numel()
    if isinstance(counts, Mapping):
        if list(counts) != losses.names:
            raise ValueError(f"counts are of {', '.join(counts)} and losses of {', '.join(losses.names)}.")
        counts = list(counts.values())
    if not isinstance(counts, Tensor):
        each = [torch.as_tensor(count, dtype=torch.float64) for count in counts]
        counts = torch.stack([count.to(losses.values.device) for count in each], -1)
    given = counts.detach().double().cpu()
    shape = losses.values.shape
    given = given.expand(shape) if given.ndim < len(shape) else given
    if given.shape != shape or not bool((given >= 0).all()):
        raise ValueError(f"counts must be one number ≥ 0 per loss, {list(shape)}; they are {counts}.")
    return given.flatten().tolist()


ByParameter = Mapping[int, tuple[Tensor, Tensor]]
"""Parameters with their gradients, by the identity of the parameter."""


class OwnGradients:
    """The means over micro-batches of the gradients of each row's own parameters."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        self._memory: set[int] = set()
        self.from_python = False
        """Whether functions written in Python compute gradients: they may return memory that is still in use."""

    def clear(self) -> None:
        """Forget everything."""
        self._rows, self._memory = {}, set()

    def add(
        self, row: int, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], share: float = 1.0
    ) -> None:
        """Add a micro-batch's gradients of a row, ``None`` if not reached, given its share in the mean so far."""
        new = {id(p): (p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None}
        if share == 1.0:
            self._rows[row] = {key: (p, self._apart(p, g)) for key, (p, g) in new.items()}
            return
        means = self._rows.setdefault(row, {})
        for key, (p, mean) in means.items():
            if key not in new:
                mean.mul_(1 - share)
            else:
                means[key] = p, _full(mean).lerp_(_full(new[key][1]), share)
        means |= {key: (p, _full(g) * share) for key, (p, g) in new.items() if key not in means}

    def take(self, shared: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Remove and yield row, parameter and gradient of parameters that have become shared."""
        keys = {id(p) for p in shared}
        for row, gradients in self._rows.items():
            for key in keys & gradients.keys():
                yield row, *gradients.pop(key)

    def weighted(self, factors: Mapping[int, float | Tensor]) -> ByParameter:
        """Return the sum over rows of gradient times factor, by parameter."""
        total: dict[int, tuple[Tensor, Tensor]] = {}
        for row, factor in factors.items():
            for key, (p, gradient) in self._rows.get(row, {}).items():
                if isinstance(factor, Tensor):
                    gradient = gradient * factor.to(device=gradient.device, dtype=gradient.dtype.to_real())
                elif factor != 1.0:
                    gradient = gradient * factor
                total[key] = (p, total[key][1] + gradient if key in total else gradient)
        return total

    def all(self) -> list[Tensor]:
        """Return the values of all gradients as real tensors."""
        each = [gradient for row in self._rows.values() for _, gradient in row.values()]
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


def _full(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


class ShownGradients(TaskGradients):
    """Gradients without the loss scale, while ``.grad`` remains scaled for the loss scaler.

    Args:
        gradients: The gradients of losses multiplied by ``scale``.
        scale: The loss scale, a scalar tensor; ``None`` for one.
        ownership: Names the parameters.
        graph: The graph of the last micro-batch.
        device: The device of the losses.
    """

    def __init__(
        self,
        gradients: TaskGradients,
        scale: Tensor | None,
        ownership: Ownership,
        graph: Graph,
        device: torch.device,
    ) -> None:
        self._gradients = gradients
        self._scale = scale
        self._ownership = ownership
        self._graph = graph
        self._device = device
        self._gramian: Tensor | None = None

    @property
    def layout(self) -> Sequence[tuple[str, int]]:  # type: ignore[override]
        """Name and size of each shared parameter in the order of the Jacobian's columns."""
        return [(self._ownership.name(p), p.numel() * (1 + p.is_complex())) for p in self._ownership.shared()]

    @property
    def distances(self) -> Sequence[int | None]:  # type: ignore[override]
        """The number of operations between the losses and each parameter of the layout."""
        return self._graph.distances(self._ownership.shared())

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
        """Add the combination, scaled; the weights may be on the CPU."""
        self._gradients.combine(sent(weights, self._device))

    def jacobian(self) -> Tensor:
        """Return the unscaled Jacobian."""
        jacobian = self._gradients.jacobian()
        return jacobian if self._scale is None else jacobian / self._scale

    def assign(self, vector: Tensor) -> None:
        """Add the vector, scaled."""
        self._gradients.assign(vector if self._scale is None else vector * self._scale)
