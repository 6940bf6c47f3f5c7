"""Which part of a model serves which task, found by one forward pass."""

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from multitask.gradients.graph import Graph, users
from multitask.gradients.parts import Part, parts
from multitask.lightning.batches import picked
from multitask.lightning.probing import unobtrusive
from multitask.module import MultiTaskModule
from multitask.task import Batch, Outcome


def shared_in(module: MultiTaskModule, batch: Batch) -> list[nn.Parameter]:
    """Return the parameters that several losses reach in one forward pass, which a compiled trunk hides.

    What is frozen now counts too: it may be trained later.
    """
    frozen = [p for p in module.parameters() if not p.requires_grad and p.is_floating_point()]
    with unobtrusive(module), torch.enable_grad():
        for p in frozen:
            p.requires_grad_(True)
        _, losses = compare(module, picked(batch, torch.arange(2)))
        edges = [[get_gradient_edge(loss)] if loss.requires_grad else [] for loss in losses.values()]
        reaching = dict(Graph(edges).leaves)
        for p in frozen:
            p.requires_grad_(False)
    return [p for p in module.parameters() if (found := reaching.get(p, 0)) & (found - 1)]


def compare(module: MultiTaskModule, batch: Batch) -> tuple[dict[str, Outcome], dict[str, Tensor]]:
    """Return what each task that predicts makes of a batch, and the loss of every task, with their graphs."""
    seen = module.see(batch)
    outcomes = module.outcomes(seen)
    losses = {
        name: outcomes[name].loss
        if name in outcomes
        else module.term(name, seen)[0]
        if name in module.terms
        else module.penalty(name)
        for name in module.names
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
        *parts(trunk, users(losses, list(trunk.values()))),
        *parts(tasks, users(losses, list(tasks.values())), depth=3),
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
