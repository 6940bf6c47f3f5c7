"""Losses of two halves of a batch, for weightings that want two independent batches."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from multitask.data.batches import examples_in, halves

LossAndCount = Tensor | tuple[Tensor, float | Tensor]
"""A mean loss over a batch, and how many elements it is over; alone, it is over the examples."""


def losses_of_halves(
    losses: Callable[[Any], Mapping[str, LossAndCount]], batch: Any
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each loss on the two halves of a batch, ``[2]``, with its counts, ``[2]``.

    Args:
        losses: A batch → its mean losses by name. What one half has no label for has a count of zero there.
        batch: The batch.
    """
    found = [(examples_in(half), losses(half)) for half in halves(batch)]
    like = next(_with_count(loss, 0)[0].detach() for _, of_half in found for loss in of_half.values())
    nothing = (torch.zeros_like(like), 0.0)
    joined = {}
    for name in dict.fromkeys(name for _, of_half in found for name in of_half):
        pairs = [_with_count(of_half.get(name, nothing), examples) for examples, of_half in found]
        pairs += [nothing] * (2 - len(pairs))
        counts = [torch.as_tensor(count, dtype=torch.float64).cpu() for _, count in pairs]
        joined[name] = (torch.stack([loss for loss, _ in pairs]), torch.stack(counts))
    return joined


def _with_count(loss: LossAndCount, examples: int | None) -> tuple[Tensor, float | Tensor]:
    return loss if isinstance(loss, tuple) else (loss, float(examples or 0))
