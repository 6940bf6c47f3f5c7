"""A Jacobian spread over processes: each keeps a slice of the columns of the sum of all."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.rows import add_to_gradients, inner_products, split_like
from multitask.gradients.task_gradients import TaskGradients

# torch 2.13 renamed the collectives.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Reduction:
    """Rows on their way: each process gets the sum, over all processes, of a slice of every row.

    Reduce-scattering the rows moves m·n numbers a process, gathering the combined gradient n: an
    all-reduce of the Jacobian would move 2·m·n.

    Args:
        rows: This process's rows, ``[k, n + padding]``, whose width all processes share. None may change
            between :meth:`send` and :meth:`gradients`.
        parameters: The shared parameters, n numbers in all.
    """

    def __init__(self, rows: Tensor, parameters: Sequence[Tensor]) -> None:
        self._rows = rows
        self._parameters = parameters
        self._shards = rows.new_empty(len(rows), rows.shape[1] // dist.get_world_size())
        self._pending: list[dist.Work] = []

    def send(self, i: int) -> None:
        """Send a row, and do not wait for it; every process sends the same rows in the same order."""
        self._pending.append(_reduce_scatter(self._shards[i], self._rows[i], async_op=True))

    def gradients(self) -> "ShardedRows":
        """Wait for all rows."""
        for work in self._pending:
            work.wait()
        return ShardedRows(self._shards, self._parameters)


class ShardedRows(TaskGradients):
    """The sum over processes of their Jacobians, exact, without any process holding all of it.

    The Gramian is that of the summed gradients.

    Args:
        shards: This process's slice of each row of the sum, ``[k, width]``.
        parameters: The shared parameters, n numbers in all; columns beyond are padding.
    """

    def __init__(self, shards: Tensor, parameters: Sequence[Tensor]) -> None:
        self._shards = shards
        self._parameters = parameters
        self._n = sum(p.numel() for p in parameters)

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ`` of the summed Jacobian: the slices' Gramians add up."""
        gramian = inner_products(self._shards, self._shards)
        dist.all_reduce(gramian)
        return gramian

    def combine(self, weights: Tensor) -> None:
        """Combine the slices and gather the result."""
        vector = self._gathered(weights.to(self._shards.dtype) @ self._shards)
        add_to_gradients(self._parameters, split_like(vector, self._parameters))

    def jacobian(self) -> Tensor:
        """Gather the whole Jacobian, shape ``[k, n]``: m·n numbers more on the wire."""
        return torch.stack([self._gathered(shard) for shard in self._shards])

    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, the same on every process."""
        add_to_gradients(self._parameters, split_like(vector.clone(), self._parameters))

    def _gathered(self, shard: Tensor) -> Tensor:
        whole = shard.new_empty(shard.numel() * dist.get_world_size())
        _all_gather(whole, shard.contiguous())
        return whole[: self._n]
