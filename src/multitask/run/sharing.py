"""Which part of a model serves which task, found by one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from multitask.gradients.sharing import Part, parts, users
from multitask.module import MultiTaskModule
from multitask.task import Batch, Outcome


@contextmanager
def unobtrusive(module: MultiTaskModule) -> Iterator[None]:
    """Evaluate without a trace: running statistics and random numbers stay what they are."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        for part in training:
            part.training = True


def compare(module: MultiTaskModule, batch: Batch) -> tuple[dict[str, Outcome], dict[str, Tensor]]:
    """Return what each task with a head makes of a batch, and the loss of every task, with their graphs."""
    outcomes = dict(zip(module.by_name, module(batch), strict=True))
    losses = {
        name: outcomes[name].loss if name in outcomes else module.penalty(name) for name in module.names
    }
    return outcomes, losses


def parts_of(module: MultiTaskModule, losses: dict[str, Tensor]) -> list[Part]:
    """Return the largest parts of trunk and heads that serve the same tasks.

    Args:
        module: The module.
        losses: The loss of every task, with its graph.
    """
    trunk, tasks = (
        {name: p for name, p in module.named_parameters() if name.startswith(room)}
        for room in ("trunk.", "tasks.")
    )
    return [
        *parts(trunk, users(losses, trunk.values())),
        *parts(tasks, users(losses, tasks.values()), depth=3),
    ]


def told(part: Part, tasks: int) -> str:
    """Return in words which tasks use a part."""
    match len(part.users):
        case 0:
            return "none (frozen or unused)"
        case 1:
            return part.users[0] + (" alone" if tasks > 1 else "")
        case n if n == tasks:
            return "all"
    return ", ".join(part.users)
