"""Sums and means over processes that equal those of one process with the whole batch."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.rows import add_to_gradients, dense, numbers, row_like, split_like


def mean_over_processes(losses: Tensor, counts: Sequence[float]) -> tuple[Tensor, list[float]]:
    """Return the mean losses of all processes, ``[m]``, with gradients that average to theirs, and the counts.

    The gradient is this process's share times the number of processes.

    Args:
        losses: This process's mean losses, ``[m]``.
        counts: The number of elements that each is a mean over on this process, ``[m]``.
    """
    own = losses.new_tensor(counts)
    totals = torch.stack([losses.detach().where(own > 0, 0.0) * own, own])
    dist.all_reduce(totals)
    whole = totals[1].clamp(min=torch.finfo(totals.dtype).tiny)
    local = losses.where(own > 0, 0.0) * (own * dist.get_world_size() / whole)
    mean = local + (totals[0] / whole - local).detach()
    return mean.requires_grad_(), totals[1].tolist()  # without labels, this process has no graph


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over processes; a process without a gradient counts as zero."""
    candidates = [p for p in parameters if p.requires_grad]
    present = {p: p.grad for p in candidates if p.grad is not None}
    for p, total in sum_over_processes(present, candidates).items():
        p.grad = None
        add_to_gradients([p], [total.div_(dist.get_world_size())])


def sum_over_processes(
    gradients: Mapping[Tensor, Tensor], candidates: Sequence[Tensor]
) -> dict[Tensor, Tensor]:
    """Return the sums of parameters' gradients over processes; a process without a gradient counts as zero.

    ``candidates`` are all parameters that could have one, in the same order on every process.
    """
    if not candidates:
        return {}
    present = torch.tensor([float(p in gradients) for p in candidates], device=candidates[0].device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    some = [p for p, anywhere in zip(candidates, present.tolist(), strict=True) if anywhere]
    if not some:
        return {}
    flat = row_like(some).new_zeros(numbers(some))
    views = split_like(flat, some)
    for p, view in zip(some, views, strict=True):
        if p in gradients:
            view.copy_(dense(gradients[p]))
    dist.all_reduce(flat)
    return dict(zip(some, views, strict=True))
