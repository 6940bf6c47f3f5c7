"""Checks whether losses are finite."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def finite_check(losses: Tensor, tasks: Sequence[str], step: int) -> Callable[[], None]:
    """Return a check of losses, ``[k]``, that raises :func:`not_finite`; on CUDA, only the check waits for them."""
    losses = losses.detach()
    finite, arrived = losses.isfinite().all(), None
    if finite.is_cuda:
        # A copy into pinned memory is asynchronous.
        finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

    def check() -> None:
        if arrived is not None:
            arrived.synchronize()
        if not finite:
            raise not_finite(losses, tasks, step)

    return check


def not_finite(losses: Tensor, tasks: Sequence[str], step: int) -> FloatingPointError:
    """Return an error that names the step and the tasks whose loss is NaN or infinite."""
    # In reverse, so that a task's first such row wins.
    bad = {
        tasks[i % len(tasks)]: losses[i].item()
        for i in (~losses.isfinite()).nonzero().flatten().tolist()[::-1]
    }
    named = ", ".join(f"{name} ({value})" for name, value in reversed(bad.items()))
    return FloatingPointError(f"The loss of {named} is not finite at step {step}.")
