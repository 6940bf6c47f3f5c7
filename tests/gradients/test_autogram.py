"""TorchJD's engine behind the interface of all engines, against one naive backward pass a row."""

import pytest
import torch
from torch import Tensor, nn

from multitask.gradients.autogram import Autogram
from tests.gradients.test_layerwise import (
    assert_same,
    convolutions,
    mlp,
    naive,
    random_cotangents,
    shared,
)


def check(trunk: nn.Module, inputs: Tensor, m: int, by_example: bool = False) -> None:
    trunk, inputs = trunk.double(), inputs.double()
    engine = Autogram(by_example)
    for frozen in (False, True, False):
        next(trunk.parameters()).requires_grad_(not frozen)
        # One that no Gramian is asked of must not disturb the next.
        trunk(inputs)
        with engine.watch(trunk):
            outputs = [trunk(inputs)]
        groups = torch.arange(len(inputs)) if by_example else None
        cotangents = random_cotangents(outputs, m, groups, len(inputs) if by_example else 1)
        J = naive(outputs, cotangents, shared(trunk))
        assert_same(engine.differentiate(outputs, cotangents, shared(trunk)), J, shared(trunk))
        assert not any(part._forward_hooks for part in trunk.modules()), "no hook stays behind"


@pytest.mark.parametrize("make", [mlp, convolutions])
def test_tasks(make: type[nn.Module]) -> None:
    inputs = torch.randn(2, 3, 12, 12) if make is convolutions else torch.randn(4, 40)
    check(make(), inputs, 3)


def test_examples() -> None:
    check(mlp(), torch.randn(4, 40), 2, by_example=True)


def test_halves_and_unused_outputs() -> None:
    first, second = nn.Linear(40, 30).double(), nn.Linear(40, 20).double()
    trunk = nn.ModuleList([first, second])
    inputs = torch.randn(4, 40).double()
    engine = Autogram()
    with engine.watch(trunk):
        outputs = [first(inputs), second(inputs)]
    cotangents = random_cotangents(outputs, 2, torch.arange(4) % 2, 2)
    cotangents.by_task[0][1] = None
    J = naive(outputs, cotangents, shared(trunk))
    assert_same(engine.differentiate(outputs, cotangents, shared(trunk)), J, shared(trunk))
