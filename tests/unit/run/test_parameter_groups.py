"""Optimizer settings by pattern of parameter names."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from multitask.errors import ConfigError
from multitask.run.parameter_groups import Grouped
from multitask.run.record import of_task, recipe_digest
from multitask.run.resume import differences


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 2)
        self.tasks = nn.ModuleDict({"left": nn.Linear(2, 1), "right": nn.Linear(2, 1)})
        self.weighting = nn.Linear(1, 1, bias=False)


def made(settings: dict[str, dict[str, Any]]) -> tuple[Model, torch.optim.Optimizer]:
    model = Model()
    own = list(model.weighting.parameters())
    rest = [p for p in model.parameters() if p is not own[0]]
    groups = [{"params": rest}, {"params": own, "lr": 0.5, "weight_decay": 0.0}]
    return model, Grouped(partial(torch.optim.AdamW, lr=0.1, weight_decay=0.2), settings, model)(groups)


def test_parameters_have_the_settings_of_their_pattern() -> None:
    settings = {"tasks.left.*": {"lr": 1.0}, "*.bias": {"weight_decay": 0.0}}
    with pytest.raises(ConfigError, match=r"'tasks\.left\.\*' and '\*\.bias' both match tasks\.left\.bias"):
        made(settings)
    model, optimizer = made({"tasks.left.*": {"lr": 1.0}, "trunk.bias": {"weight_decay": 0.0}})
    of = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert {name: of[id(p)] for name, p in model.named_parameters()} == {
        "trunk.weight": (0.1, 0.2),
        "trunk.bias": (0.1, 0.0),
        "tasks.left.weight": (1.0, 0.2),
        "tasks.left.bias": (1.0, 0.2),
        "tasks.right.weight": (0.1, 0.2),
        "tasks.right.bias": (0.1, 0.2),
        "weighting.weight": (0.5, 0.0),
    }


def test_groups_are_never_empty() -> None:
    _, optimizer = made({"trunk.*": {"lr": 1.0}, "tasks.*": {"lr": 2.0}, "weighting.*": {"lr": 3.0}})
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [
        (1.0, 2),
        (2.0, 4),
        (3.0, 1),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tasks.lft.*": {"lr": 1.0}},
            r"'tasks\.lft\.\*' matches no parameter; did you mean 'tasks\.left\.\*'\?",
        ),
        ({"trunk.*": {"lrr": 1.0}}, r"'trunk\.\*' sets lrr, which AdamW does not have; did you mean 'lr'\?"),
        (
            {"trunk.*": {"lr": -1.0}},
            r"'trunk\.\*' has \{'lr': -1\.0\} \(Invalid learning rate: -1\.0\); change",
        ),
        ({"trunk.*": {"lr": "high"}}, r"'trunk\.\*' has \{'lr': 'high'\} \("),
        ({"trunk.*": {"betas": [0.9, 1.5]}}, r"'trunk\.\*' has \{'betas': .*\(Invalid beta"),
        ({"tasks.*": {"weight_decay": -0.1}}, r"'tasks\.\*' has .*\(Invalid weight_decay"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(settings)


class OfMatrices(torch.optim.SGD):
    """An optimizer that takes only matrices, as Muon does."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("only matrices")


def test_values_are_checked_with_the_parameters_of_the_model() -> None:
    model = nn.ModuleDict({"trunk": nn.Linear(3, 2, bias=False), "head": nn.Linear(2, 1, bias=False)})
    optimizer = Grouped(OfMatrices, {"trunk.*": {"lr": 1.0}}, model)([{"params": [*model.parameters()]}])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]


def test_recipe_of_a_task_excludes_settings_of_other_tasks() -> None:
    groups = {
        "tasks.left.*": {"lr": 1.0},
        "tasks.right.*": {"lr": 2.0},
        "trunk.*": {"lr": 3.0},
        "tasks.*.bias": {},
    }
    assert of_task(groups, "left").keys() == {"tasks.left.*", "trunk.*", "tasks.*.bias"}
    assert of_task(groups, None) == groups
    config: dict[str, Any] = {
        "paths": {"root": "/a"},
        "data": {},
        "trainer": {},
        "trunk": {},
        "tasks": {"left": {}},
    }
    joint, alone = (
        config | {"parameter_groups": groups},
        config | {"parameter_groups": of_task(groups, "left")},
    )
    assert recipe_digest(joint, "left") == recipe_digest(alone, "left") != recipe_digest(config, "left")
    assert recipe_digest(config) == recipe_digest(config | {"parameter_groups": None})


def test_changed_settings_are_a_difference_on_resume() -> None:
    assert not list(differences({}, {"parameter_groups": None}))
    (changed,) = differences({}, {"parameter_groups": {"trunk.*": {"lr": 1.0}}})
    assert changed == ("parameter_groups.trunk.*.lr", None, 1.0)
