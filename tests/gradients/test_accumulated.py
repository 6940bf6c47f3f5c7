"""Rows of several micro-batches and processes."""

import pytest
import torch
from torch import Tensor, nn

from multitask.gradients import accumulated
from multitask.gradients.accumulated import AccumulatedRows
from tests.gradients.test_layerwise import assert_same, mlp, naive, random_cotangents, shared


def test_micro_batches_add_up_and_buffers_are_used_again() -> None:
    trunk, engine = mlp().double(), AccumulatedRows()
    for micro_batches in (1, 3, 2):
        engine.begin(micro_batches)
        J = torch.zeros(())
        for _ in range(micro_batches):
            outputs = [trunk(torch.randn(4, 40).double())]
            cotangents = random_cotangents(outputs, 3)
            J = J + naive(outputs, cotangents, shared(trunk))
            gradients = engine.differentiate(outputs, cotangents, shared(trunk))
        assert_same(gradients, J, shared(trunk))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_each_row_is_sent_before_the_next_is_differentiated(
    micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sent: list[Tensor] = []

    class Sent:
        def __init__(self, rows: Tensor, parameters: list[nn.Parameter]) -> None:
            self._rows = rows

        def send(self, i: int) -> None:
            events.append(f"send {i}")
            sent.append(self._rows[i].clone())

        def gradients(self) -> Tensor:
            return self._rows

    monkeypatch.setattr(accumulated, "Reduction", Sent)
    monkeypatch.setattr(accumulated.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(accumulated.dist, "get_world_size", lambda: 2)
    trunk, engine = nn.Linear(4, 3).double(), AccumulatedRows()
    engine.begin(micro_batches)
    for _ in range(micro_batches):
        outputs = [trunk(torch.randn(2, 4).double())]
        cotangents = random_cotangents(outputs, 3)
        outputs[0].register_hook(lambda gradient: events.append("differentiate"))
        rows = engine.differentiate(outputs, cotangents, shared(trunk))
    assert events == ["differentiate"] * (3 * (micro_batches - 1)) + [
        event for i in range(3) for event in ("differentiate", f"send {i}")
    ]
    # Nothing was written into a row after it was sent, and the width is even.
    assert torch.equal(torch.stack(sent), rows)
    assert rows.shape == (3, 16)
    assert not rows[:, 15:].any()
