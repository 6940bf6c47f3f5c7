"""Finds the parts of a model that serve each task, from one forward pass."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from multitask.data.batches import few_of
from multitask.gradients.graph import Graph
from multitask.lightning.module import MultiLossModule
from multitask.lightning.probing import unobtrusive
from multitask.module import MultiTaskModule
from multitask.task.task import Batch, Outcome


class Part(NamedTuple):
    """A part of a model that serves the same tasks throughout."""

    name: str
    """Dotted, as in ``named_parameters``."""
    users: tuple[str, ...]
    """The tasks that use it; empty if none does."""


def users(losses: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> list[tuple[str, ...]]:
    """Return the losses that reach each parameter, by name and in the order of ``losses``.

    Outputs of one operation, such as the parts of a split or all outputs of a compiled network, are not
    distinguished: a parameter that one of them reaches counts as reached by each.
    """
    edges = [[get_gradient_edge(loss)] if loss.requires_grad else [] for loss in losses.values()]
    reaching = {id(leaf): bits for leaf, bits in Graph(edges).leaves}
    names = list(losses)
    return [
        tuple(name for i, name in enumerate(names) if reaching.get(id(p), 0) >> i & 1) for p in parameters
    ]


def parts(
    named: Mapping[str, nn.Parameter], used_by: Sequence[tuple[str, ...]], depth: int = 1
) -> list[Part]:
    """Return the largest modules whose trained parameters all serve the same tasks, in the order of the names.

    Frozen parameters that no loss reaches join their module: an encoder with low-rank updates is one part.

    ``used_by`` is the result of :func:`users`; ``depth`` is the number of components of the shortest name.
    """
    found = []
    rows = zip(named, named.values(), used_by, strict=True)
    for path, group in groupby(rows, key=lambda row: row[0].split(".")[:depth]):
        below = list(group)
        served = {tasks for _, p, tasks in below if tasks or p.requires_grad}
        if len(served) <= 1:
            found.append(Part(".".join(path), next(iter(served), ())))
        else:
            inner = {name: p for name, p, _ in below}
            found += parts(inner, [tasks for _, _, tasks in below], depth + 1)
    return found


def shared_in(module: MultiTaskModule, batch: Batch) -> list[nn.Parameter]:
    """Return the parameters that several losses reach in one forward pass, which a compiled trunk hides.

    Frozen parameters count too: they may be trained later.
    """
    frozen = [p for p in module.parameters() if not p.requires_grad and p.is_floating_point()]
    with unobtrusive(module), torch.enable_grad():
        for p in frozen:
            p.requires_grad_(True)
        every = list(module.parameters())
        used_by = users(losses_of(module, few_of(batch, 2)), every)
        for p in frozen:
            p.requires_grad_(False)
    return [p for p, its in zip(every, used_by, strict=True) if len(its) > 1]


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
    own = {name: p for name, p in module.named_parameters() if not name.startswith("weighting.")}
    found: list[Part] = []
    for prefix, depth in (
        {"trunk.": 1, "tasks.": 3}.items() if isinstance(module, MultiTaskModule) else [("", 1)]
    ):
        named = {name: p for name, p in own.items() if name.startswith(prefix)}
        found += parts(named, users(losses, list(named.values())), depth)
    return found


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
