"""Each engine's step equals one backward pass per row, for networks of every kind."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from multitask.gradients import rows as rows_module
from multitask.step import Step
from multitask.weighting.base import Rows
from tests.unit.gradients.reference import Known, assert_step, leaves_of
from tests.unit.gradients.zoo import ZOO, losses_of, network

CASES: list[tuple[Rows, int, int]] = [
    ("task", 2, 1),
    ("task", 3, 7),
    ("half", 2, 2),
    ("half", 3, 6),
    ("example", 2, 1),
    ("example", 3, 2),
    ("example", 2, 12),
]
"""The kind of row, the number of losses, and the number of examples."""


@pytest.mark.smoke(*(f"{name}-auto-{large}" for name in ZOO for large in (0, rows_module._LARGE)))
@pytest.mark.slow
@pytest.mark.parametrize("large", [0, rows_module._LARGE])
@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("name", ZOO)
def test_step_equals_plain_backward_passes(
    name: str, engine: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``large=0``, all rows of single batches stay separate; a few numbers of them are put side by side."""
    monkeypatch.setattr(rows_module, "_LARGE", large)
    monkeypatch.setattr(rows_module, "_SIDE_BY_SIDE", 50)
    for rows, m, batch in CASES:
        net, x = network(name, m, batch)
        step = Step(Known(rows), net, engine=engine)
        losses = partial(losses_of, net, x, rows)
        for _ in range(2):
            assert_step(step, losses, leaves_of(net))


class Positions(nn.Module):
    """Two positions per example, of which the losses use the second; one example has labels."""

    def __init__(self, batch: int, order: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 60)
        self.heads = nn.ModuleList(nn.Linear(60, 2) for _ in range(2))
        self.inputs = torch.randn(batch, 2, 3).double()
        self.order = order
        self.labelled = torch.zeros(batch).double()
        self.labelled[torch.randint(0, batch, (1,))] = 1.0

    def losses(self) -> dict[str, Tensor]:
        positions = self.inputs.transpose(0, 1).flatten(0, 1)[self.order]
        hidden = torch.tanh(self.layer(positions))[self.order.argsort()].unflatten(0, (2, -1))[-1]
        return {str(i): head(hidden).square().sum(1) * self.labelled for i, head in enumerate(self.heads)}


@pytest.mark.smoke("arange")
@pytest.mark.slow
@pytest.mark.parametrize("order", [torch.arange, torch.randperm])
def test_examples_are_identified_if_only_one_has_a_gradient(order: Callable[[int], Tensor]) -> None:
    torch.manual_seed(0)
    for batch in range(9, 200, 7):
        model = Positions(batch, order(2 * batch)).double()
        assert_step(Step(Known("example"), model), model.losses, leaves_of(model))
