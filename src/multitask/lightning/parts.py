"""Losses of two halves of a batch, for weightings that need two independent batches."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from multitask.data.batches import examples_in, halves

LossAndCount = Tensor | tuple[Tensor, float | Tensor]
"""A mean loss and its count; a loss without count is a mean over the examples."""


def losses_of_halves(
    losses: Callable[[Any], Mapping[str, LossAndCount]], batch: Any
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each loss on the two halves of a batch, ``[2]``, with its counts, ``[2]``.

    The count of a loss that is absent from a half is zero.
    """
    by_half = [(examples_in(half), losses(half)) for half in halves(batch)]
    like = next(_with_count(loss, 0)[0].detach() for _, given in by_half for loss in given.values())
    absent = (torch.zeros_like(like), 0.0)
    joined = {}
    for name in dict.fromkeys(name for _, given in by_half for name in given):
        pairs = [_with_count(given.get(name, absent), examples) for examples, given in by_half]
        joined[name] = stacked(*pairs, *[absent] * (2 - len(pairs)))
    return joined


def stacked(*parts: tuple[Tensor, float | Tensor]) -> tuple[Tensor, Tensor]:
    """Return a loss on parts of a batch and its counts, each ``[parts]``."""
    losses, counts = zip(*parts, strict=True)
    numbers = [torch.as_tensor(count, dtype=torch.float64).cpu() for count in counts]
    return torch.stack(losses), torch.stack(numbers)


def _with_count(loss: LossAndCount, examples: int | None) -> tuple[Tensor, float | Tensor]:
    return loss if isinstance(loss, tuple) else (loss, float(examples or 0))
