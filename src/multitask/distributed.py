"""Losses and gradients of several processes as those of one process with the whole batch."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def mean_over_processes(losses: Tensor, masses: Tensor) -> Tensor:
    """Return the whole batch's mean losses, with gradients that average to those of the whole batch.

    The value is the mean over all processes, so that a scalarization weighs by it. The gradient is
    this process's share times the number of processes, since the Trainer averages over them.

    Args:
        losses: This process's mean losses, shape ``[m]``.
        masses: What each is a mean over here, shape ``[m]``.
    """
    totals = torch.stack([losses.detach() * masses, masses])
    dist.all_reduce(totals)
    whole = totals[1].clamp(min=torch.finfo(totals.dtype).tiny)
    local = losses * (masses * dist.get_world_size() / whole)
    return local + (totals[0] / whole - local).detach()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients over processes; where only some have one, the others add zeros."""
    wanted = [p for p in parameters if p.requires_grad]
    if not wanted:
        return
    there = torch.tensor([float(p.grad is not None) for p in wanted], device=wanted[0].device)
    dist.all_reduce(there, op=dist.ReduceOp.MAX)
    some = [p for p, anywhere in zip(wanted, there.tolist(), strict=True) if anywhere]
    if not some:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in some])
    dist.all_reduce(flat)
    for p, part in zip(some, flat.split([p.numel() for p in some]), strict=True):
        p.grad = part.view_as(p)
