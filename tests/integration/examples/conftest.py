"""Reference gradients of every step of an example, by plain autograd."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGrad

import multitask


class Reference:
    """Accumulates the rows of a step's micro-batches by plain autograd and compares the step's ``.grad`` with them.

    Args:
        aggregate: Jacobian of the shared parameters, ``[m, n]`` → gradient, ``[n]``.
    """

    def __init__(self, aggregate: Callable[[Tensor], Tensor]) -> None:
        self.aggregate = aggregate
        self.model: dict[str, Tensor] = {}
        self.rows: list[list[Tensor | None]] = []
        self.counts: list[float] = []
        self.steps = 0

    def add(self, losses: Mapping[str, Tensor], counts: Any) -> None:
        each = list(counts.values()) if isinstance(counts, Mapping) else [counts or 1] * len(losses)
        parameters = list(self.model.values())
        for i, (loss, count) in enumerate(zip(losses.values(), each, strict=True)):
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            row = [None if g is None else float(count) * g for g in found]
            if i == len(self.rows):
                self.rows.append(row)
                self.counts.append(float(count))
            else:
                both = zip(self.rows[i], row, strict=True)
                self.rows[i] = [a if b is None else b if a is None else a + b for a, b in both]
                self.counts[i] += float(count)

    def compare(self) -> None:
        parameters = list(self.model.values())
        rows = [
            [None if g is None else g / count for g in row]
            for row, count in zip(self.rows, self.counts, strict=True)
        ]
        reached = [sum(g is not None for g in column) for column in zip(*rows, strict=True)]
        shared = [i for i, losses in enumerate(reached) if losses > 1]
        flat = [
            torch.cat(
                [
                    torch.zeros_like(parameters[i]).flatten() if row[i] is None else row[i].flatten()
                    for i in shared
                ]
            )
            for row in rows
        ]
        combined = self.aggregate(torch.stack(flat)).split([parameters[i].numel() for i in shared])
        expected = {i: vector.view_as(parameters[i]) for i, vector in zip(shared, combined, strict=True)}
        for row in rows:
            expected |= {i: g for i, g in enumerate(row) if g is not None and i not in shared}
        for i, (name, parameter) in enumerate(self.model.items()):
            if i in expected:
                torch.testing.assert_close(parameter.grad, expected[i], rtol=1e-7, atol=1e-10, msg=name)
            else:
                assert parameter.grad is None, name
        self.rows, self.counts = [], []
        self.steps += 1


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reference]:
    """Compare every step with the reference, in double precision."""
    watch = Reference(UPGrad())
    step = multitask.Step
    made, add, backward, finish = step.__init__, step.add, step.backward, step.finish

    def on_made(self: Any, weighting: object, model: Any = None, **options: Any) -> None:
        named = dict(model.named_parameters()) if isinstance(model, nn.Module) else dict(model)
        watch.model = {name: p for name, p in named.items() if p.requires_grad}
        made(self, weighting, model, **options)

    def on_add(self: Any, losses: Any, counts: Any = None) -> None:
        watch.add(losses, counts)
        add(self, losses, counts)

    def on_backward(self: Any, losses: Any, counts: Any = None) -> multitask.StepResult:
        watch.add(losses, counts)
        return backward(self, losses, counts)

    def on_finish(self: Any) -> multitask.StepResult:
        result = finish(self)
        watch.compare()
        return result

    monkeypatch.setattr(step, "__init__", on_made)
    monkeypatch.setattr(step, "add", on_add)
    monkeypatch.setattr(step, "backward", on_backward)
    monkeypatch.setattr(step, "finish", on_finish)
    torch.set_default_dtype(torch.float64)
    yield watch
    torch.set_default_dtype(torch.float32)
