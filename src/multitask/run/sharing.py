"""Finds the parts of a model that serve each task, from one forward pass."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from multitask.data.batches import few_of
from multitask.gradients.graph import Graph
from multitask.lightning.module import MultiLossModule
from multitask.lightning.probing import unobtrusive
from multitask.module import MultiTaskModule
from multitask.run.parts import Part, parts, users
from multitask.task.task import Batch, Outcome


def shared_in(module: MultiTaskModule, batch: Batch) -> list[nn.Parameter]:
    """Return the parameters that several losses reach in one forward pass, which a compiled trunk hides.

    Frozen parameters count too: they may be trained later.
    """
    frozen = [p for p in module.parameters() if not p.requires_grad and p.is_floating_point()]
    with unobtrusive(module), torch.enable_grad():
        for p in frozen:
            p.requires_grad_(True)
        _, losses = compare(module, few_of(batch, 2))
        edges = [[get_gradient_edge(loss)] if loss.requires_grad else [] for loss in losses.values()]
        reaching = dict(Graph(edges).leaves)
        for p in frozen:
            p.requires_grad_(False)
    return [p for p in module.parameters() if (found := reaching.get(p, 0)) & (found - 1)]


def compare(module: MultiTaskModule, batch: Batch) -> tuple[dict[str, Outcome], dict[str, Tensor]]:
    """Return the outcomes of the tasks that predict and the losses of all tasks on a batch, with their graphs."""
    seen = module.see(batch)
    outcomes = seen.outcomes()
    losses = {name: outcome.loss for name, outcome in outcomes.items()}
    losses |= {name: module.term(name, seen)[0] for name in module.terms}
    return outcomes, {name: losses[name] if name in losses else module.penalty(name) for name in module.names}


def losses_of(module: MultiLossModule, batch: Any) -> dict[str, Tensor]:
    """Return the losses of a batch, with their graphs."""
    if isinstance(module, MultiTaskModule):
        return compare(module, batch)[1]
    given = module.losses(batch)
    return {name: loss[0] if isinstance(loss, tuple) else loss for name, loss in given.items()}


def parts_of(module: MultiLossModule, losses: dict[str, Tensor]) -> list[Part]:
    """Return the largest parts of a model that serve the same losses."""
    if not isinstance(module, MultiTaskModule):
        own = {n: p for n, p in module.named_parameters() if not n.startswith("weighting.")}
        return parts(own, users(losses, list(own.values())))
    trunk, tasks = (
        {name: p for name, p in module.named_parameters() if name.startswith(room)}
        for room in ("trunk.", "tasks.")
    )
    return [
        *parts(trunk, users(losses, list(trunk.values()))),
        *parts(tasks, users(losses, list(tasks.values())), depth=3),
    ]


def users_of(part: Part, tasks: int) -> str:
    """Return the tasks that use a part, in words."""
    match len(part.users):
        case 0:
            return "none (frozen or unused)"
        case 1:
            return part.users[0] + (" alone" if tasks > 1 else "")
        case n if n == tasks:
            return "all"
    return ", ".join(part.users)
