"""A Jacobian spread over processes: each keeps a slice of the columns of the sum of all."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multitask.autodiff.gradients import TaskGradients
from multitask.autodiff.rows import add_to_gradients, split_like

# torch 2.13 renamed the collectives.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ShardedRows(TaskGradients):
    """The sum over processes of their Jacobians, exact, without any process holding all of it.

    Reduce-scattering the rows moves m·n numbers a process, gathering the combined gradient n: an
    all-reduce of the Jacobian would move 2·m·n. The Gramian is that of the summed gradients.

    Args:
        rows: This process's rows, shape ``[k, n]``; columns beyond are padding.
        parameters: The shared parameters, n numbers in all.
    """

    def __init__(self, rows: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._n = sum(p.numel() for p in parameters)
        world = dist.get_world_size()
        width = -(-self._n // world)
        self._shards = rows.new_empty(len(rows), width)
        pending = []
        for row, shard in zip(rows, self._shards, strict=True):
            padded = torch.nn.functional.pad(row, (0, width * world - row.numel()))
            pending.append((padded, _reduce_scatter(shard, padded, async_op=True)))
        for _, work in pending:
            work.wait()

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ`` of the summed Jacobian: the slices' Gramians add up."""
        gramian = self._shards @ self._shards.T
        dist.all_reduce(gramian)
        return gramian

    def combine(self, weights: Tensor) -> None:
        """Combine the slices and gather the result."""
        self.assign(self._gathered(weights.to(self._shards.dtype) @ self._shards))

    def jacobian(self) -> Tensor:
        """Gather the whole Jacobian, shape ``[k, n]``: m·n numbers more on the wire."""
        return torch.stack([self._gathered(shard) for shard in self._shards])

    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, the same on every process."""
        add_to_gradients(self._parameters, split_like(vector, self._parameters))

    def _gathered(self, shard: Tensor) -> Tensor:
        whole = shard.new_empty(shard.numel() * dist.get_world_size())
        _all_gather(whole, shard.contiguous())
        return whole[: self._n]
