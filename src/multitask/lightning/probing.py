"""Forward passes without side effects on the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import checkpoint


class _NoCheckpoint:
    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


@contextmanager
def unobtrusive(*modules: nn.Module, train: bool = False) -> Iterator[None]:
    """Run forward passes without side effects: restores modes, buffers and random states.

    Unless ``train`` is set, the modules are in evaluation mode, and re-entrant checkpointing, which hides parts of the
    graph, is disabled.
    """
    parts = [part for module in modules for part in module.modules()]
    modes = [(part, part.training) for part in parts]
    kept = [(b, b.detach().clone()) for module in modules for b in module.buffers() if not is_lazy(b)]
    devices = {b.device.index for b, _ in kept if b.device.type == "cuda"}
    reentrant = checkpoint.CheckpointFunction
    if not train:
        for module in modules:
            module.eval()
        checkpoint.CheckpointFunction = _NoCheckpoint  # type: ignore[assignment, misc]
    try:
        with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
            yield
    finally:
        checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for buffer, before in kept:
                if buffer.shape == before.shape:
                    buffer.copy_(before)
