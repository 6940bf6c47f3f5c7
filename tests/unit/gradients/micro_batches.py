"""Steps of several micro-batches, and the same step's losses in one graph."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from multitask.gradients import exchange, factors, layerwise
from multitask.gradients.operands import Operand
from multitask.step import Step
from tests.unit.gradients.reference import Known, leaves_of
from tests.unit.gradients.zoo import ZOO, Network, losses_of

MicroBatch = tuple[Tensor, list[int]]
"""The inputs, and the count of each loss."""


def network_of(name: str, m: int) -> nn.Module:
    """Return a network of the zoo, with the same parameters at each call."""
    make, inputs = ZOO[name]
    torch.manual_seed(m)
    x = inputs(4)
    return Network(make().double(), x.double() if x.is_floating_point() else x, m).double()


def window_of(name: str, m: int, sizes: Sequence[int], seed: int = 0) -> list[MicroBatch]:
    """Return a step's micro-batches, some of which lack some losses."""
    torch.manual_seed(seed)
    window = []
    for size in sizes:
        x = ZOO[name][1](size)
        window.append((x.double() if x.is_floating_point() else x, torch.randint(0, 4, (m,)).tolist()))
    return window


def whole(network: nn.Module, window: Sequence[MicroBatch]) -> dict[str, Tensor]:
    """Return the step's mean losses in one graph, without the absent ones."""
    totals = [sum(counts) for counts in zip(*(counts for _, counts in window), strict=True)]
    found: dict[str, list[Tensor]] = {}
    for x, counts in window:
        for (name, loss), count, total in zip(
            losses_of(network, x, "task").items(), counts, totals, strict=True
        ):
            if count:
                found.setdefault(name, []).append(loss * (count / total))
    return {name: torch.stack(found[name]).sum() for name in sorted(found)}


def take(network: nn.Module, window: Sequence[MicroBatch]) -> tuple[Tensor | None, list[Tensor | None], Step]:
    """Take a step and return the weighting's Gramian, the gradients and the step."""
    known = Known()
    step = Step(known, network)
    for number, (x, counts) in enumerate(window):
        last = number == len(window) - 1
        x = x.clone()
        (step.backward if last else step.add)(losses_of(network, x, "task"), counts)
        if x.is_floating_point():
            x.fill_(torch.nan)  # a buffer that the next batch is loaded into
    return known.seen, [p.grad for p in leaves_of(network)], step


@contextmanager
def factors_up_to(most: float) -> Iterator[None]:
    """Keep factors for at most this many positions, regardless of the cost."""

    def rule(operand: Operand, k: int, positions: int, *args: int, **options: int) -> bool:
        return positions <= most

    layerwise.is_cheaper = exchange.is_cheaper = rule
    try:
        yield
    finally:
        layerwise.is_cheaper = exchange.is_cheaper = factors.is_cheaper
