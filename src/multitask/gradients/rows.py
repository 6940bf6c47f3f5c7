"""Rows of the Jacobian in one buffer, summed over micro-batches and processes."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.losses import Pulls
from multitask.gradients.task_gradients import Engine, MicroBatch, TaskGradients

# Length of the blocks of a row that one matrix product sums.
_BLOCK = 1024
# Up to this length the rounding error of one long sum is that of its terms.
_SHORT = 2**16
# Rows of at least this length stay as autograd returns them: in a buffer there would be one gradient more.
_LARGE = 2**19
# Numbers of separate rows that are put side by side at a time.
_SIDE_BY_SIDE = 2**18
# torch 2.13 renamed the collectives.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class StoredGradients(TaskGradients):
    """Gradients with one column per element of the shared parameters.

    Args:
        parameters: The shared parameters, with n elements in total.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters

    def assign(self, vector: Tensor) -> None:
        add_to_gradients(self.parameters, split_like(vector.clone(), self.parameters))


class RowGradients(StoredGradients):
    """A Jacobian stored as a matrix, ``[k, n]``."""

    def __init__(self, jacobian: Tensor, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._jacobian = jacobian

    def gramian(self) -> Tensor:
        return inner_products(self._jacobian, self._jacobian)

    def combine(self, weights: Tensor) -> None:
        vector = weights.to(self._jacobian.dtype) @ self._jacobian
        add_to_gradients(self.parameters, split_like(vector, self.parameters))

    def jacobian(self) -> Tensor:
        return self._jacobian


class SeparateRows(StoredGradients):
    """Rows as autograd returned them, a gradient or ``None`` per parameter, without memory beside the gradients."""

    def __init__(self, rows: Sequence[Sequence[Tensor | None]], parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rows = rows
        self._like = row_like(parameters)
        self._width = _SIDE_BY_SIDE // len(rows)

    def gramian(self) -> Tensor:
        # A running sum rounds each time, which in half precision makes it stagnate; MPS has no float64.
        precise = torch.float32 if self._like.device.type == "mps" else torch.float64
        total = self._like.new_zeros(len(self._rows), len(self._rows), dtype=precise)
        for place in range(len(self.parameters)):
            for columns in self._columns(place):
                total += inner_products(columns, columns)
        return total.to(self._like.dtype)

    def combine(self, weights: Tensor) -> None:
        weights = weights.to(self._like.dtype)
        for place, parameter in enumerate(self.parameters):
            combined = self._like.new_empty(real_shape(parameter))
            parts = combined.view(-1).split(self._width)
            for part, columns in zip(parts, self._columns(place), strict=True):
                torch.mv(columns.T, weights, out=part)
            add_to_gradients([parameter], [combined])

    def jacobian(self) -> Tensor:
        jacobian = self._like.new_empty(len(self._rows), numbers(self.parameters))
        for row, gradients in zip(jacobian, self._rows, strict=True):
            write(split_like(row, self.parameters), gradients)
        return jacobian

    def _columns(self, place: int) -> Iterator[Tensor]:
        """Yield the columns of one parameter, ``[k, some]``, a few at a time."""
        zeros = self._like.new_zeros(()).expand(real_shape(self.parameters[place]).numel())
        each = [row[place] for row in self._rows]
        flat = [zeros if g is None else dense(g).reshape(-1).to(self._like.dtype) for g in each]
        for some in zip(*(gradient.split(self._width) for gradient in flat), strict=True):
            yield torch.stack(some)


class ShardedRows(StoredGradients):
    """The sum of all processes' Jacobians, of which each process keeps a slice of every row.

    Reduce-scattering the rows moves k·n numbers per process and gathering the combined gradient n; an
    all-reduce of the Jacobian would move 2·k·n.

    Args:
        rows: This process's rows, ``[k, n + padding]``, equally wide on all processes. A row must not change
            between :meth:`send` and :meth:`choose`.
        parameters: The shared parameters.
    """

    def __init__(self, rows: Tensor, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._rows = rows
        self._shards = rows.new_empty(len(rows), rows.shape[1] // processes())
        self._pending: list[dist.Work] = []

    def send(self, i: int) -> None:
        """Send a row without waiting; every process sends the same rows in the same order."""
        self._pending.append(_reduce_scatter(self._shards[i], self._rows[i], async_op=True))

    def choose(self, rows: Sequence[int]) -> None:
        """Wait for all rows, and keep the chosen ones."""
        for work in self._pending:
            work.wait()
        self._shards = self._shards[list(rows)]

    def gramian(self) -> Tensor:
        gramian = inner_products(self._shards, self._shards)
        dist.all_reduce(gramian)
        return gramian

    def combine(self, weights: Tensor) -> None:
        vector = self._gathered(weights.to(self._shards.dtype) @ self._shards)
        add_to_gradients(self.parameters, split_like(vector, self.parameters))

    def jacobian(self) -> Tensor:
        """Gather the Jacobian, shape ``[k, n]``, which moves another k·n numbers."""
        return torch.stack([self._gathered(shard) for shard in self._shards])

    def _gathered(self, shard: Tensor) -> Tensor:
        whole = shard.new_empty(shard.numel() * processes())
        _all_gather(whole, shard.contiguous())
        return whole[: numbers(self.parameters)]


class Rows(Engine):
    """Exact for any graph: one backward pass per row, written into a buffer that is reused by later steps.

    Large rows of a single batch stay as they are.
    """

    def __init__(self) -> None:
        self._parameters: list[Tensor] = []
        self._rows = torch.empty(0, 0)
        """The sums, padded with zeros so that all processes' slices are equally wide."""
        self._shapes: list[tuple[torch.Size, bool]] = []
        self._views: list[list[Tensor]] = []
        """Each row's view of each parameter; in a small network, making views takes as long as computing."""
        self.clear()

    def clear(self) -> None:
        self._begun = False
        self._found: SeparateRows | ShardedRows | None = None

    def add(self, batch: MicroBatch) -> None:
        pulls, parameters, weights, factors, wanted, alone = batch
        # A function written in Python may return memory that is still in use.
        large = alone and self.by_gramian and numbers(parameters) >= _LARGE
        if large and not pulls.graph.python:
            self._parameters = list(parameters)
            self._found = SeparateRows(_separate_rows(pulls, parameters), self._parameters)
            return
        self._allocate(len(weights), parameters, several=not alone)
        sharded = None if factors is None else ShardedRows(self._rows, parameters)
        for row, (total, views) in enumerate(zip(self._rows, self._views, strict=True)):
            if row in pulls.rows:
                gradients = pulls.pull(row, parameters)
                write(views, gradients, weights[row] if self._begun else None)
                del gradients  # else the next pass would hold them beside its own
            elif not self._begun:
                total.zero_()
            if sharded is not None and factors is not None and (wanted is None or row in wanted):
                total *= factors[row]
                sharded.send(row)
        self._begun, self._found = True, sharded

    def lay_out(self, parameters: Sequence[Tensor], moved: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        if not self._begun or [*map(id, parameters)] == [*map(id, self._parameters)]:
            return
        before, views = self._parameters, self._views
        self._rows = self._rows.new_empty(0, 0)
        self._allocate(len(views), parameters, several=True)
        place = {p: i for i, p in enumerate(parameters)}
        for new, old in zip(self._views, views, strict=True):
            for p, view in zip(before, old, strict=True):
                if p in place:  # and has not been frozen since
                    new[place[p]].copy_(view)
        for row, p, gradient in moved:
            write([self._views[row][place[p]]], [gradient])

    def gradients(self, rows: Sequence[int], factors: Sequence[float]) -> StoredGradients:
        found, self._found = self._found, None  # the memory is free as soon as the caller's is
        if isinstance(found, ShardedRows):
            found.choose(rows)
        if found is not None:
            return found
        sums = self._rows[:, : numbers(self._parameters)]
        sums = sums if len(rows) == len(sums) else sums[list(rows)]
        return RowGradients(multiplied(sums, factors), self._parameters)

    def _allocate(self, k: int, parameters: Sequence[Tensor], several: bool) -> None:
        like, shapes = row_like(parameters), [(p.shape, p.is_complex()) for p in parameters]
        like = widened(like) if several else like
        old, width = self._rows, -(-numbers(parameters) // processes()) * processes()
        same = old.shape == (k, width) and old.dtype == like.dtype and old.device == like.device
        if not same or shapes != self._shapes:
            self._rows, self._shapes = like.new_zeros(k, width), shapes
            self._views = [split_like(row, parameters) for row in self._rows]
        self._parameters = list(parameters)


def _separate_rows(pulls: Pulls, parameters: Sequence[Tensor]) -> list[list[Tensor | None]]:
    """Return the gradients of each row, copied only where their memory has other users.

    Raises:
        RuntimeError: If a hook wrote into a gradient of an earlier row.
    """
    rows = [
        # A version of its own has, for one, a buffer that a hook fills in every pass.
        [g if g is None or not g._version else g.clone() for g in pulls.pull(row, parameters)]
        for row in pulls.rows
    ]
    if any(g is not None and g._version for gradients in rows for g in gradients):
        raise RuntimeError(
            "a hook changed in place what it had returned for another loss; return a new tensor from it."
        )
    own = {g.data_ptr() for of_row in pulls.own.values() for g in of_row if g is not None and not g.is_sparse}
    return [
        [g if g is None or g.is_sparse or g.data_ptr() not in own else g.clone() for g in gradients]
        for gradients in rows
    ]


def processes() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def real_shape(parameter: Tensor) -> torch.Size:
    """Return the real shape of this process's part of a parameter: a complex number has two real ones."""
    shape = local(parameter).shape
    return torch.Size([*shape, 2]) if parameter.is_complex() else shape


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a ``torch.distributed.tensor.DTensor``, whose import takes seconds."""
    return type(tensor) is not torch.nn.Parameter and hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor sharded over processes; other tensors unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def within(parameter: Tensor, part: Tensor, before: int = 0) -> Any:
    """Return a tensor sharded like a parameter, given this process's part, with ``before`` leading dimensions."""
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size([*part.shape[:before], *parameter.shape, *part.shape[before + parameter.ndim :]])
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    moved = [Shard(p.dim + before) if isinstance(p, Shard) else p for p in placements]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, moved, run_check=False, shape=shape, stride=stride)


def numbers(parameters: Iterable[Tensor]) -> int:
    """Return the number of real elements of parameters."""
    return sum(real_shape(p).numel() for p in parameters)


def row_like(parameters: Sequence[Tensor]) -> Tensor:
    """Return an empty tensor of the rows' device and dtype, which is real and can represent all parameters."""
    if not parameters:
        return torch.empty(0)
    dtype = reduce(torch.promote_types, {p.dtype for p in parameters})
    return torch.empty(0, dtype=dtype.to_real(), device=parameters[0].device)


def split_like(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return views of ``vector``, shape ``[n]`` or longer, in the (real) shapes of the parameters."""
    shapes = [real_shape(p) for p in parameters]
    sizes = [shape.numel() for shape in shapes]
    parts = vector[: sum(sizes)].split(sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def add_to_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Accumulate into ``.grad``, as ``backward`` does."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.is_complex() and not gradient.is_complex():
            gradient = torch.complex(*gradient.unbind(-1))  # a view could begin at an odd number
        if is_sharded(parameter) and not is_sharded(gradient):
            gradient = within(parameter, gradient)
        if parameter.grad is None:
            parameter.grad = gradient.to(parameter.dtype)
        elif parameter.grad.is_sparse:
            parameter.grad = gradient.to(parameter.dtype) + parameter.grad
        else:
            parameter.grad += gradient.to(parameter.dtype)


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a dense tensor of real numbers."""
    if gradient.is_complex():
        return torch.view_as_real(gradient.resolve_conj())
    return gradient.to_dense() if gradient.is_sparse else gradient


def write(row: list[Tensor], gradients: Sequence[Tensor | None], weight: float | None = None) -> None:
    """Write gradients into views of a row, and zeros for those that are ``None``; given a weight, add them times it."""
    arrived = [dense(gradient) for gradient in gradients if gradient is not None]
    if len(arrived) < len(row):
        if weight is None:
            torch._foreach_zero_([view for view, g in zip(row, gradients, strict=True) if g is None])
        row = [view for view, g in zip(row, gradients, strict=True) if g is not None]
    if arrived and weight is not None:
        torch._foreach_add_(row, arrived, alpha=weight)
    elif arrived:
        torch._foreach_copy_(row, arrived)


def multiplied(rows: Tensor, factors: Sequence[float]) -> Tensor:
    """Multiply each row, ``[k, …]``, by a factor, in place."""
    if all(factor == 1.0 for factor in factors):
        return rows
    column = sent(torch.tensor(factors, dtype=rows.dtype), rows.device)
    return rows.mul_(column.view(-1, *[1] * (rows.ndim - 1)))


def widened(total: Tensor) -> Tensor:
    """Return a sum of several micro-batches in float32 at least; half precision would lose what many of them add."""
    return total.to(torch.promote_types(total.dtype, torch.float32))


def inner_products(rows: Tensor, others: Tensor) -> Tensor:
    """Return the inner products of rows, ``[k, n]``, with others, ``[l, n]``: shape ``[k, l]``.

    A matrix product sums the n terms of an entry one after the other: with the millions of parameters of a
    convolutional trunk, its error grows to 4e-5 in float32. Sums of blocks keep it at 1e-7, in half the time.
    """
    n = rows.shape[1]
    if n <= _SHORT:
        return rows @ others.T
    whole = n // _BLOCK * _BLOCK
    left, right = (part[:, :whole].unflatten(1, (-1, _BLOCK)).movedim(1, 0) for part in (rows, others))
    return (left @ right.mT).sum(0) + rows[:, whole:] @ others[:, whole:].T


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one device on the CPU by a single copy, which waits for the device once."""
    if tensors[0].device.type == "cpu":
        return list(tensors)
    whole = torch.cat([tensor.flatten() for tensor in tensors]).cpu()  # in a dtype that holds them all
    parts = whole.split([tensor.numel() for tensor in tensors])
    return [part.to(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting; CUDA first copies pageable memory to a buffer of its own."""
    return tensor.to(device, non_blocking=device.type != "mps")


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Return whether each tensor is finite; waits for the device once if all are."""
    sums = torch.stack([tensor.sum() for tensor in tensors]).tolist()
    # The sum of finite numbers can overflow: if it is not finite, the numbers are checked one by one.
    return [
        math.isfinite(total) or bool(tensor.isfinite().all())
        for total, tensor in zip(sums, tensors, strict=True)
    ]
