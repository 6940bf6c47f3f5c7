"""Gradients of parameters sharded by FSDP2: each process keeps its part of every row.

``fully_shard`` gathers a module's parameters for its passes, and each ``backward`` leaves every process its part of
the gradient, averaged over processes; ``torch.autograd.grad`` would return whole gradients of one process's batch.
So a row is a ``backward`` whose result is taken out of ``.grad``, the Gramian is one all-reduce of ``[m, m]``, and
combining rows needs no communication.
"""

import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multitask.gradients.losses import Inputs, Losses, Pull, Pulls, Roots
from multitask.gradients.rows import (
    RowGradients,
    Rows,
    StoredGradients,
    add_to_gradients,
    inner_products,
    is_sharded,
    local,
    numbers,
    processes,
    real_shape,
    split_like,
    within,
    write,
)
from multitask.gradients.task_gradients import TaskGradients


class Shards:
    """A model's parameters as they appear in the graph, whole, and as each process keeps them, sharded.

    Args:
        model: A model with modules sharded by ``torch.distributed.fsdp.fully_shard``.

    Raises:
        ValueError: If a parameter is sharded otherwise than by ``fully_shard`` over all processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kept: dict[Tensor, Tensor] = {}
        """Maps each whole parameter, a leaf of the graph, to the sharded one."""
        self._modules = sharded_modules(model)
        self.release()
        for module in self._modules:
            before = dict(module.named_parameters(remove_duplicate=False))
            module.unshard()
            after = dict(module.named_parameters(remove_duplicate=False))
            self.kept |= {p: before[name] for name, p in after.items() if p is not before[name]}
            module.reshard()
        self._whole = {kept: whole for whole, kept in self.kept.items()}
        for name, p in model.named_parameters():
            if is_sharded(p) and (is_sharded(self._whole.get(p, p)) or _parts(p) != processes()):
                raise ValueError(
                    f"{name} is in {_parts(p)} parts on {processes()} processes, and gradients of single losses need "
                    "torch.distributed.fsdp.fully_shard over all of them; shard it so, or leave it whole."
                )

    def agree(
        self, losses: Losses, counts: Sequence[float], reached: Sequence[tuple[str, int]]
    ) -> list[float]:
        """Replace losses by those of the whole batch, and scale gradients so that FSDP's mean is the whole batch's.

        Args:
            losses: This process's losses.
            counts: Their counts, ``[parts · m]``.
            reached: The names of the parameters, with the set of losses that reach each.

        Returns:
            The counts over all processes.

        Raises:
            ValueError: If they reach other parameters than on another process, which would wait for them forever.
        """
        mark = zlib.crc32(repr(reached).encode()) % 2**20  # the sum of squares over processes is exact
        own = torch.tensor(counts).to(losses.values)
        sums = losses.values.where(own.view_as(losses.values) > 0, 0.0).flatten() * own
        known = torch.tensor([*counts, mark, mark**2], dtype=torch.float64, device=sums.device)
        message = torch.cat([known, sums.double()])
        dist.all_reduce(message)
        k = len(counts)
        *totals, once, squared = message[: k + 2].tolist()
        if squared * processes() != once**2:
            raise ValueError(
                "losses reach other parameters on one process than on another, and with sharded parameters every "
                "process takes part in every loss; compute each loss everywhere, with a count of zero where it "
                "has no label."
            )
        known = torch.tensor(totals, device=sums.device, dtype=torch.float64).clamp(min=1e-300)
        losses.values = (message[k + 2 :] / known).to(losses.values).view_as(losses.values)
        losses.factors = [
            processes() * a / total if total else 0.0 for a, total in zip(counts, totals, strict=True)
        ]
        return totals

    def gradients_at(
        self, roots: Roots, inputs: Sequence[Tensor], retain_graph: bool = False, absent: bool = False
    ) -> list[Tensor | None]:
        """Return this process's part of the mean gradient of each parameter; all processes call it together.

        Args:
            roots: The edges at which the gradients enter the graph, and the gradients.
            inputs: The parameters.
            retain_graph: Whether another pass follows.
            absent: Whether this process contributes zero: a loss without labels may have NaN gradients.
        """
        edges, seeds = roots
        if not inputs or not edges:
            return [None] * len(inputs)
        before = [p.grad for p in inputs]
        leaves = [self._whole.get(p, p) for p in inputs]
        try:
            for p in inputs:
                p.grad = None
            with ExitStack() as hooks:
                for leaf in leaves if absent else ():
                    hooks.callback(leaf.register_hook(torch.zeros_like).remove)
                torch.autograd.backward(edges, seeds, retain_graph, inputs=leaves)
            gradients = [None if p.grad is None else local(p.grad).detach() for p in inputs]
        finally:
            for p, gradient in zip(inputs, before, strict=True):
                p.grad = gradient
        alone = [i for i, p in enumerate(inputs) if p not in self._whole]
        if alone and processes() > 1:
            flat = torch.cat([inputs[i].new_zeros(inputs[i].numel()) for i in alone])
            write(split_like(flat, [inputs[i] for i in alone]), [gradients[i] for i in alone])
            dist.all_reduce(flat)
            views = split_like(flat / processes(), [inputs[i] for i in alone])
            for i, mean in zip(alone, views, strict=True):
                gradients[i] = mean
        return gradients

    def release(self) -> None:
        """Free the whole parameters: a module without a backward pass would keep and use them forever."""
        for module in self._modules:
            module.reshard()

    def holds(self, parameter: Tensor) -> bool:
        """Return whether this process is the first one that has its elements of a parameter."""
        return parameter in self._whole or not dist.get_rank()


def _parts(parameter: Any) -> int:
    """Return the number of parts of a parameter: some dimensions of a mesh may only replicate it."""
    sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_shard())


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules of a model that ``fully_shard`` was applied to."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # slow to import, and only imported if used
    return [] if fsdp is None else [m for m in model.modules() if isinstance(m, fsdp.FSDPModule)]


def shards_of(
    model: nn.Module | Mapping[str, Tensor] | None, sharded: nn.Module | None = None
) -> Shards | None:
    """Return the shards of a model; ``None`` if none of its parameters is sharded.

    Args:
        model: A module, or tensors by name.
        sharded: The module that these tensors belong to.

    Raises:
        ValueError: If sharded tensors are given without their module.
    """
    whole = model if isinstance(model, nn.Module) else sharded
    if whole is not None:
        split = sharded_modules(whole) or any(map(is_sharded, whole.parameters()))
        return Shards(whole) if split else None
    if isinstance(model, Mapping) and any(map(is_sharded, model.values())):
        raise ValueError("parameters are split over processes; pass the module as model= to Step.")
    return None


class ShardedPulls(Pulls):
    """Backward passes that all processes run together, each from its own part of a loss."""

    def __init__(self, shards: Shards, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shards = shards

    def pass_of(self, row: int, last: bool | None = None) -> Pull:
        """Return the backward pass of a row; see :class:`Pulls`."""
        part, task = divmod(row, self.losses.m)
        retain_graph = self.retain_graph or not (row == self.rows[-1] if last is None else last)
        assert self.losses.factors is not None
        absent = self.losses.factors[row] == 0

        def pull(inputs: Inputs) -> list[Tensor | None]:
            everything: list[Any] = [*inputs, *self.parameters[task]]
            roots = self.losses.root(part, task)
            gradients = self._shards.gradients_at(roots, everything, retain_graph, absent)
            self.own[row] = gradients[len(inputs) :]
            return gradients[: len(inputs)]

        return pull


class ShardedEngine(Rows):
    """Rows of this process's parts; sharded parameters come before those that every process has."""

    def __init__(self, shards: Shards) -> None:
        super().__init__()
        self._shards = shards
        self._order: Sequence[Tensor] = []

    def add(self, pulls: Pulls, parameters: Sequence[Tensor], *args: Any) -> None:
        """Add a micro-batch; see :class:`Rows`."""
        self._order = parameters
        super().add(pulls, self._held_first(parameters), *args)

    def lay_out(self, parameters: Sequence[Tensor], *args: Any) -> None:
        """Add columns for parameters that have become shared; see :class:`Rows`."""
        super().lay_out(self._held_first(parameters), *args)

    def gradients(self, rows: Sequence[int]) -> StoredGradients:
        """Return the means of some rows."""
        means = self._rows[list(rows), : numbers(self._parameters)]
        held = numbers(p for p in self._parameters if self._shards.holds(p))
        return ShardedGradients(means, self._parameters, self._order, held)

    def _held_first(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        return sorted(parameters, key=lambda p: p not in self._shards._whole)


class ShardedGradients(RowGradients):
    """This process's columns of a Jacobian.

    Args:
        jacobian: Shape ``[k, n]``, where n is the number of elements that this process keeps.
        parameters: The shared parameters in the order of the columns.
        order: The same parameters in the order of the Jacobian of one process.
        held: The number of leading columns that no earlier process has.
    """

    def __init__(
        self, jacobian: Tensor, parameters: Sequence[Tensor], order: Sequence[Tensor], held: int
    ) -> None:
        super().__init__(jacobian, parameters)
        self._order = order
        self._held = held

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ`` over all processes' columns."""
        held = self._jacobian[:, : self._held]
        gramian = inner_products(held, held)
        dist.all_reduce(gramian)
        return gramian

    @property
    def local(self) -> TaskGradients:
        """This process's columns, if all parameters are sharded."""
        split = all(is_sharded(p) for p in self.parameters)
        return LocalGradients(self._jacobian, self.parameters) if split else self

    def jacobian(self) -> Tensor:
        """Gather all processes' columns, which moves m · n numbers, and stores as many on each process."""
        pieces = {}
        sizes = [real_shape(p).numel() for p in self.parameters]
        for p, piece in zip(self.parameters, self._jacobian.split(sizes, 1), strict=True):
            rows = piece.reshape(len(piece), *real_shape(p))
            pieces[p] = within(p, rows, 1).full_tensor() if is_sharded(p) else rows
        return torch.cat([pieces[p].flatten(1) for p in self._order], 1)

    def assign(self, vector: Tensor) -> None:
        """Add this process's part of ``vector``, shape ``[n]`` of the whole Jacobian."""
        for p, piece in zip(self._order, vector.split([p.numel() for p in self._order]), strict=True):
            add_to_gradients([p], [part_of(p, piece.view(p.shape)).clone()])


class LocalGradients(RowGradients):
    """One process's columns, for methods that treat columns one by one or sum over them."""

    def total(self, part: Tensor) -> Tensor:
        """Return the sum over processes of sums over their columns."""
        return self._reduced(part, dist.ReduceOp.SUM)

    def greatest(self, part: Tensor) -> Tensor:
        """Return the maximum over processes of maxima over their columns."""
        return self._reduced(part, dist.ReduceOp.MAX)

    @staticmethod
    def _reduced(part: Tensor, operation: Any) -> Tensor:
        part = part.clone()
        dist.all_reduce(part, op=operation)
        return part

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ`` over all processes' columns."""
        return self.total(super().gramian())


def check_hooks(losses: Tensor) -> None:
    """Reject losses that were stacked within a sharded module.

    Raises:
        ValueError: If so: FSDP2's hooks are on the stack, and backward passes start behind it.
    """
    stacked = losses.grad_fn is not None and losses.grad_fn.name() == "StackBackward0"
    if stacked and losses._backward_hooks:
        raise ValueError(
            "losses were stacked within a module that fully_shard has hooked, and a single loss would pass its hooks "
            "by; return them one by one, as a mapping or a tuple."
        )


def one_sided(counts: Sequence[float], device: torch.device) -> bool:
    """Return whether a loss has labels on some processes only."""
    absent = torch.tensor([float(count == 0) for count in counts], device=device)
    dist.all_reduce(absent)
    return bool(((absent > 0) & (absent < processes())).any())


def part_of(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return this process's part of a tensor that is to be sharded like a parameter."""
    if not is_sharded(parameter):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=placements).to_local()
