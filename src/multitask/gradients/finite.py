"""Checks whether losses are finite."""

from collections.abc import Sequence

import torch
from torch import Tensor


class FiniteLosses:
    """Checks whether losses are finite, and waits for the device only in :meth:`check`.

    Args:
        losses: Shape ``[k]``.
        tasks: The names of the tasks.
        step: The number of the step.
    """

    def __init__(self, losses: Tensor, tasks: Sequence[str], step: int) -> None:
        self._losses = losses.detach()
        self._tasks = tasks
        self._step = step
        self._finite = self._losses.isfinite().all()
        self._arrived: torch.cuda.Event | None = None
        if self._finite.is_cuda:
            # A copy into pinned memory is asynchronous.
            pinned = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._finite = pinned.copy_(self._finite, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def check(self) -> None:
        """Raise an error that names task and step if a loss is not finite.

        Raises:
            FloatingPointError: If so.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        if not self._finite:
            raise not_finite(self._losses, self._tasks, self._step)


def not_finite(losses: Tensor, tasks: Sequence[str], step: int) -> FloatingPointError:
    """Return an error that names the step and the tasks whose loss is NaN or infinite."""
    # In reverse, so that a task's first such row wins.
    bad = {
        tasks[i % len(tasks)]: losses[i].item()
        for i in (~losses.isfinite()).nonzero().flatten().tolist()[::-1]
    }
    named = ", ".join(f"{name} ({value})" for name, value in reversed(bad.items()))
    return FloatingPointError(f"The loss of {named} is not finite at step {step}.")
