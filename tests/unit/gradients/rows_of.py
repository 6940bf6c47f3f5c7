"""Losses with given gradients at the outputs of a network, and the reference for their rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multitask.gradients.graph import Graph
from multitask.gradients.losses import Losses, Pulls
from multitask.gradients.task_gradients import Engine, MicroBatch, TaskGradients

ROUNDING = {"rtol": 1e-10, "atol": 1e-12}


@dataclass
class Cotangents:
    """The gradient of each loss at each output; with ``groups``, one row per group of examples."""

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
    """Return losses whose gradients at the outputs are the cotangents; ``direct`` adds penalties to the rows."""
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


def gradients_of(engine: Engine, losses: Losses, parameters: Sequence[Tensor]) -> TaskGradients:
    """Return the gradients of a whole step."""
    pulls = pulls_of(losses)
    engine.clear()
    engine.add(MicroBatch(pulls, parameters, [1.0] * losses.values.numel(), alone=True))
    return engine.gradients(pulls.rows, [1.0] * len(pulls.rows))


def differentiate(
    engine: Engine,
    outputs: Sequence[Tensor],
    cotangents: Cotangents,
    parameters: Sequence[Tensor],
    direct: Sequence[Tensor | None] = (),
) -> TaskGradients:
    return gradients_of(engine, losses_of(outputs, cotangents, direct), parameters)


def random_cotangents(
    outputs: Sequence[Tensor], m: int, groups: Tensor | None = None, count: int = 1
) -> Cotangents:
    generator = torch.Generator().manual_seed(1)
    by_task: list[list[Tensor | None]] = [
        [torch.randn(o.shape, generator=generator).to(o) for o in outputs] for _ in range(m)
    ]
    return Cotangents(by_task, groups, count)


def naive(
    outputs: Sequence[Tensor],
    cotangents: Cotangents,
    parameters: Sequence[nn.Parameter],
    direct: Sequence[Tensor | None] = (),
) -> Tensor:
    """Return the Jacobian by one backward pass per row."""
    rows = []
    for i, gradients in enumerate(cotangents.rows()):
        terms = [(o * g).sum() for o, g in zip(outputs, gradients, strict=True) if g is not None]
        if i < len(direct) and (penalty := direct[i]) is not None:
            terms.append(penalty)
        total = torch.stack(terms).sum()
        found = torch.autograd.grad(
            total, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def assert_same(
    gradients: TaskGradients, J: Tensor, parameters: Sequence[nn.Parameter], **tolerance: float
) -> None:
    """Compare all four methods with the reference Jacobian."""
    tolerance = tolerance or ROUNDING
    torch.testing.assert_close(gradients.gramian(), J @ J.T, **tolerance)
    weights = torch.linspace(-1, 2, len(J), dtype=J.dtype)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    gradients.combine(weights)
    combined = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.testing.assert_close(combined, weights @ J + 1, **tolerance)
    torch.testing.assert_close(gradients.jacobian(), J, **tolerance)
    for parameter in parameters:
        parameter.grad = None
    gradients.assign(J[0])
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]), J[0])


def mlp(inplace: bool = False, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(40, 50, bias=bias), nn.ReLU(inplace), nn.Linear(50, 60, bias=bias), nn.ReLU(inplace)
    )
