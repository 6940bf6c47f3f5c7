"""Penalties on named parameters: values by hand, and their row of the Jacobian."""

import pytest
import torch
from torch import nn
from torchjd.aggregation import UPGrad, UPGradWeighting
from torchjd.autojac import jac_to_grad, mtl_backward
from torchjd.scalarization import Mean
from torchmetrics import MeanSquaredError

from multitask.module import MultiTaskModule
from multitask.step import Step
from multitask.task.penalty import Penalty, SumOfAbsolutes
from multitask.task.task import Task
from multitask.weighting.adapter import adapt


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh())
    return nn.ModuleDict({"trunk": trunk, "head": nn.Linear(3, 2)}).double()


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["trunk.*"], ["trunk.0.weight", "trunk.0.bias", "trunk.2.weight", "trunk.2.bias"]),
        ("trunk.*.weight", ["trunk.0.weight", "trunk.2.weight"]),
        (["head.bias", "trunk.0.*"], ["trunk.0.weight", "trunk.0.bias", "head.bias"]),
    ],
)
def test_patterns_select_by_name(patterns: list[str], names: list[str]):
    assert list(Penalty(patterns).chosen(model().named_parameters())) == names


def test_pattern_without_a_match_is_rejected():
    with pytest.raises(ValueError, match=r"no name matches 'trunk\.9\.\*'; there are trunk\.0\.weight"):
        Penalty(["trunk.*", "trunk.9.*"])(model().named_parameters())


def test_sums_by_hand():
    network = model()
    weights = torch.cat([p.flatten() for p in network["trunk"].parameters()])
    squares = Penalty(weight=0.01)(network.named_parameters())
    torch.testing.assert_close(squares, 0.01 * (weights @ weights))
    absolutes = Penalty(loss=SumOfAbsolutes(), weight=2.0)(network.named_parameters())
    torch.testing.assert_close(absolutes, 2 * weights.abs().sum())


def test_user_loss_receives_names():
    apart = Penalty(
        ["trunk.*.weight"], loss=lambda named: (named["trunk.0.weight"] @ named["trunk.0.weight"].T).sum()
    )
    network = model()
    first = network["trunk"][0].weight
    torch.testing.assert_close(apart(network.named_parameters()), (first @ first.T).sum())


def test_classification_and_penalty_are_two_rows_of_one_jacobian():
    network, reference = model(), model()
    inputs, classes = torch.randn(6, 4, dtype=torch.float64), torch.randint(2, (6,))
    penalty = Penalty(weight=0.01)

    result = Step(UPGradWeighting(), network).backward(
        {
            "classes": nn.functional.cross_entropy(network["head"](network["trunk"](inputs)), classes),
            "penalty": penalty(network.named_parameters()),
        }
    )
    assert result.gradients is not None
    expected = 0.02 * torch.cat([p.detach().flatten() for p in network["trunk"].parameters()])
    torch.testing.assert_close(result.gradients.jacobian()[1], expected)

    features = reference["trunk"](inputs)
    mtl_backward(
        [
            nn.functional.cross_entropy(reference["head"](features), classes),
            # For autojac, a loss of the features only; the penalty's row is written by hand below.
            features.sum() * 0.0,
        ],
        features=features,
        tasks_params=[list(reference["head"].parameters()), []],
        shared_params=list(reference["trunk"].parameters()),
    )
    for parameter in reference["trunk"].parameters():
        parameter.jac[1] = 0.02 * parameter.detach()
    jac_to_grad(list(reference["trunk"].parameters()), UPGrad())
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_penalties_are_measured_alongside_the_tasks():
    head = Task(nn.Linear(3, 1), nn.MSELoss(), {"mse": MeanSquaredError()}, target="y")
    tasks = {"a": head, "l2": Penalty(weight=0.5)}
    module = MultiTaskModule(nn.Linear(4, 3), tasks, weighting=adapt(Mean()))
    assert {"val/loss/a", "val/a/mse", "val/loss/l2"} <= module.validation_keys
    squares = sum(p.square().sum() for p in module.trunk.parameters())
    torch.testing.assert_close(module.penalty("l2"), 0.5 * squares)
