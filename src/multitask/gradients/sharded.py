"""Gradients of parameters sharded by FSDP2: each process keeps its part of every row.

``fully_shard`` gathers a module's parameters for its passes, and ``backward`` leaves on each process its part of the
gradient, averaged over processes; ``torch.autograd.grad`` would return the whole gradient of one process's batch.
So a row is computed by ``backward`` and taken out of ``.grad``, the Gramian takes one all-reduce of ``[m, m]``, and
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

from multitask.gradients.losses import Inputs, Losses, Pulls, Roots
from multitask.gradients.rows import (
    RowGradients,
    Rows,
    StoredGradients,
    add_to_gradients,
    inner_products,
    is_sharded,
    local,
    multiplied,
    numbers,
    processes,
    real_shape,
    split_like,
    within,
    write,
)
from multitask.gradients.task_gradients import MicroBatch, TaskGradients


class Shards:
    """A model's parameters whole, as they appear in the graph, and sharded, as the processes keep them.

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
        self.whole = {kept: whole for whole, kept in self.kept.items()}
        """The inverse of ``kept``."""
        for name, p in model.named_parameters():
            if is_sharded(p) and (is_sharded(self.whole.get(p, p)) or _parts(p) != processes()):
                raise ValueError(
                    f"{name} is in {_parts(p)} parts on {processes()} processes, and gradients of single losses need "
                    "torch.distributed.fsdp.fully_shard over all of them; shard it so, or leave it whole."
                )

    def agree(
        self, losses: Losses, counts: Sequence[float], reached: Sequence[tuple[str, int]]
    ) -> list[float]:
        """Replace losses by those of the whole batch, and scale gradients so that FSDP's mean is the whole batch's.

        Given are this process's counts, ``[parts · m]``, and the losses that reach each parameter; returned are the
        counts over all processes.

        Raises:
            ValueError: If losses reach other parameters than on another process, which would wait for them forever.
        """
        mark = zlib.crc32(repr(reached).encode()) % 2**20  # the sum of squares over processes is exact
        own = losses.values.new_tensor(counts)
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
        known = message[:k].clamp(min=1e-300)
        losses.values = (message[k + 2 :] / known).to(losses.values).view_as(losses.values)
        losses.factors = [
            processes() * a / total if total else 0.0 for a, total in zip(counts, totals, strict=True)
        ]
        return totals

    def gradients_at(
        self, roots: Roots, inputs: Sequence[Tensor], retain_graph: bool, absent: bool
    ) -> list[Tensor | None]:
        """Return this process's part of the mean gradient of each parameter; all processes call it together.

        A process on which the loss is ``absent`` contributes zero: without labels its gradients may be NaN.
        """
        edges, seeds = roots
        if not inputs or not edges:
            return [None] * len(inputs)
        leaves = [self.whole.get(p, p) for p in inputs]
        with ExitStack() as restored:
            for p in inputs:
                restored.callback(setattr, p, "grad", p.grad)
                p.grad = None
            for leaf in leaves if absent else ():
                restored.callback(leaf.register_hook(torch.zeros_like).remove)
            torch.autograd.backward(edges, seeds, retain_graph, inputs=leaves)
            gradients = [None if p.grad is None else local(p.grad).detach() for p in inputs]
        alone = [i for i, p in enumerate(inputs) if p not in self.whole]
        if alone and processes() > 1:
            unsharded = [inputs[i] for i in alone]
            flat = torch.cat([p.new_zeros(p.numel()) for p in unsharded])
            write(split_like(flat, unsharded), [gradients[i] for i in alone])
            dist.all_reduce(flat)
            for i, mean in zip(alone, split_like(flat / processes(), unsharded), strict=True):
                gradients[i] = mean
        return gradients

    def release(self) -> None:
        """Free the whole parameters: a module without a backward pass would keep and use them forever."""
        for module in self._modules:
            module.reshard()


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
    """Return the shards of a model, or of the module ``sharded`` that named tensors belong to; ``None`` if it has none.

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

    def gradients_from(
        self, row: int, roots: Roots, inputs: Inputs, retain_graph: bool = False
    ) -> list[Tensor | None]:
        assert self.losses.factors is not None
        parameters: Any = inputs
        return self._shards.gradients_at(roots, parameters, retain_graph, self.losses.factors[row] == 0)


class ShardedEngine(Rows):
    """Rows of this process's parts, with the columns of sharded parameters first."""

    def __init__(self, shards: Shards) -> None:
        super().__init__()
        self._shards = shards
        self._order: Sequence[Tensor] = []

    def add(self, batch: MicroBatch) -> None:
        self._order = batch.parameters
        super().add(batch._replace(parameters=self._sharded_first(batch.parameters)))

    def lay_out(self, parameters: Sequence[Tensor], *args: Any) -> None:
        super().lay_out(self._sharded_first(parameters), *args)

    def gradients(self, rows: Sequence[int], factors: Sequence[float]) -> StoredGradients:
        sums = multiplied(self._rows[list(rows), : numbers(self._parameters)], factors)
        # The first process alone counts the columns that all processes have.
        counted = numbers(p for p in self._parameters if p in self._shards.whole or not dist.get_rank())
        return _ShardedGradients(sums, self._parameters, self._order, counted)

    def _sharded_first(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        return sorted(parameters, key=lambda p: p not in self._shards.whole)


class _ShardedGradients(RowGradients):
    """This process's columns of a Jacobian, the leading ones of which are ``counted`` in the Gramian.

    ``parameters`` are in the order of these columns, ``order`` are the same in that of the whole Jacobian.
    """

    def __init__(
        self, jacobian: Tensor, parameters: Sequence[Tensor], order: Sequence[Tensor], counted: int
    ) -> None:
        super().__init__(jacobian, parameters)
        self._order = order
        self._counted = counted

    @property
    def local(self) -> TaskGradients:
        split = all(is_sharded(p) for p in self.parameters)
        return _LocalGradients(self._jacobian, self.parameters) if split else self

    def gramian(self) -> Tensor:
        counted = self._jacobian[:, : self._counted]
        gramian = inner_products(counted, counted)
        dist.all_reduce(gramian)
        return gramian

    def jacobian(self) -> Tensor:
        """Gather all processes' columns, which moves m · n numbers and stores them on each process."""
        pieces = {}
        sizes = [real_shape(p).numel() for p in self.parameters]
        for p, piece in zip(self.parameters, self._jacobian.split(sizes, 1), strict=True):
            rows = piece.reshape(len(piece), *real_shape(p))
            pieces[p] = within(p, rows, 1).full_tensor() if is_sharded(p) else rows
        return torch.cat([pieces[p].flatten(1) for p in self._order], 1)

    def assign(self, vector: Tensor) -> None:
        for p, piece in zip(self._order, vector.split([p.numel() for p in self._order]), strict=True):
            add_to_gradients([p], [_part_of(p, piece.view(p.shape)).clone()])


class _LocalGradients(RowGradients):
    """One process's columns, if all parameters are sharded."""

    def total(self, part: Tensor) -> Tensor:
        return _reduced(part, dist.ReduceOp.SUM)

    def greatest(self, part: Tensor) -> Tensor:
        return _reduced(part, dist.ReduceOp.MAX)

    def gramian(self) -> Tensor:
        return self.total(super().gramian())


def _reduced(part: Tensor, operation: Any) -> Tensor:
    part = part.clone()
    dist.all_reduce(part, op=operation)
    return part


def _part_of(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return this process's part of a tensor of a parameter's shape."""
    if not is_sharded(parameter):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=placements).to_local()


def check_hooks(losses: Tensor) -> None:
    """Check that losses were not stacked within a sharded module.

    Raises:
        ValueError: If they were: FSDP2's hooks are at the stack, and backward passes start behind it.
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
