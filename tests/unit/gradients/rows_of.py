"""Losses with chosen gradients at the outputs of a network, and the reference for their rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multitask.gradients.graph import Graph
from multitask.gradients.losses import Losses, Pulls
from multitask.gradients.task_gradients import Engine, TaskGradients


@dataclass
class Cotangents:
    """For each loss its gradient at each output; with groups one row per group of examples."""

    by_task: list[list[Tensor | None]]
    groups: Tensor | None = None
    count: int = 1

    def __len__(self) -> int:
        return self.count * len(self.by_task)

    def rows(self) -> Iterator[list[Tensor | None]]:
        for group in range(self.count):
            for gradients in self.by_task:
                if self.groups is None:
                    yield gradients
                else:
                    chosen = self.groups == group
                    yield [
                        None if g is None else g * chosen.view(-1, *[1] * (g.ndim - 1)).to(g)
                        for g in gradients
                    ]


def _loss(outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], first: int = 0) -> Tensor:
    terms = [
        (o * g.to(o)).flatten(first).sum(-1) for o, g in zip(outputs, gradients, strict=True) if g is not None
    ]
    return torch.stack(terms).sum(0) if terms else outputs[0].new_zeros(()).double()


def losses_of(
    outputs: Sequence[Tensor], cotangents: Cotangents, direct: Sequence[Tensor | None] = ()
) -> Losses:
    """Return losses whose gradients at the outputs are the cotangents; ``direct`` has a penalty per row."""
    m = len(cotangents.by_task)
    each = cotangents.groups is not None and torch.equal(cotangents.groups, torch.arange(cotangents.count))
    if each and all(len(o) == cotangents.count for o in outputs):
        return Losses({str(i): _loss(outputs, row, 1) for i, row in enumerate(cotangents.by_task)})
    rows = [_loss(outputs, row) for row in cotangents.rows()]
    for i, penalty in enumerate(direct):
        if penalty is not None:
            rows[i] = rows[i] + penalty
    if cotangents.count == 1:
        return Losses(rows)
    return Losses(torch.stack([torch.stack(rows[i : i + m]) for i in range(0, len(rows), m)]))


def pulls_of(losses: Losses) -> Pulls:
    return Pulls(losses, Graph(losses.edges()))


def differentiate(
    engine: Engine,
    outputs: Sequence[Tensor],
    cotangents: Cotangents,
    parameters: Sequence[Tensor],
    direct: Sequence[Tensor | None] = (),
) -> TaskGradients:
    return engine.differentiate(pulls_of(losses_of(outputs, cotangents, direct)), parameters)
