"""One step of two common problems, computed by hand: classification + 0.01·L2, and
classification 1.0 + reconstruction 0.5 with the gradient norm clipped at 0.5."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torchjd.aggregation import UPGrad, UPGradWeighting
from torchjd.autojac import backward, jac_to_grad
from torchjd.scalarization import Sum

from multitask.module import MultiTaskModule
from multitask.run.resolvers import register
from multitask.task.penalty import Penalty
from multitask.task.task import Task
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, build, fit, gradients_of_step

CONFIGS = str(Path(__file__).parents[3] / "configs")
METHODS = {"sum": Sum, "upgrad": UPGradWeighting}


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = 5 * torch.randn(24, 5, generator=generator, dtype=torch.float64)
    return {"inputs": inputs, "y": torch.randint(3, (24,), generator=generator)}


def module(method: str, other: Any, **options: Any) -> MultiTaskModule:
    heads = {"y": Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), target="y"), "other": other}
    return build(adapt(METHODS[method]()), heads=heads, **options if method == "upgrad" else {})


def step(trained: MultiTaskModule, **options: Any) -> list[Tensor]:
    """Take one training step and return its gradient."""
    before = [p.detach().clone() for p in trained.parameters()]
    fit(trained, Arrays(data()), **options)
    return gradients_of_step(before, trained)


def reference(module: MultiTaskModule, method: str, losses: list[Tensor]) -> list[Tensor]:
    """Return the gradient by torchjd: combined for parameters of several losses, else that of the one loss."""
    parameters = list(module.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    reached = [sum(gradient is not None for gradient in column) for column in zip(*rows, strict=True)]
    shared = [p for p, count in zip(parameters, reached, strict=True) if count > 1]
    own = [p for p, count in zip(parameters, reached, strict=True) if count == 1]
    sum(losses).backward(inputs=own if method == "upgrad" else parameters, retain_graph=True)
    if method == "upgrad":
        backward(losses, inputs=shared)
        jac_to_grad(shared, UPGrad())
    return [p.grad for p in parameters]


@pytest.mark.parametrize("method", METHODS)
def test_classification_and_penalty(method: str):
    trained = module(method, Penalty(weight=0.01))
    same = deepcopy(trained)
    batch = data()
    loss = cross_entropy(same.tasks["y"].head(same.trunk(batch["inputs"])), batch["y"])
    penalty = 0.01 * sum(p.square().sum() for p in same.trunk.parameters())
    expected = reference(same, method, [loss, penalty])
    for ours, theirs in zip(step(trained), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_penalized_head_is_shared(method: str):
    """The head has two losses, its own and the penalty."""
    trained = module(method, Penalty(["tasks.y.head.weight", "trunk.0.*"], weight=0.1))
    same = deepcopy(trained)
    batch = data()
    head = same.tasks["y"].head
    loss = cross_entropy(head(same.trunk(batch["inputs"])), batch["y"])
    penalty = 0.1 * (head.weight.square().sum() + sum(p.square().sum() for p in same.trunk[0].parameters()))
    for ours, theirs in zip(step(trained), reference(same, method, [loss, penalty]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_classification_and_reconstruction_clipped(method: str, limit: float):
    reconstruction = Task(nn.Linear(4, 5), nn.MSELoss(), target="inputs", weight=0.5)
    trained = module(method, reconstruction, gradient_clip_val=limit)
    same = deepcopy(trained)
    batch = data()
    features = same.trunk(batch["inputs"])
    losses = [
        cross_entropy(same.tasks["y"].head(features), batch["y"]),
        0.5 * mse_loss(same.tasks["other"].head(features), batch["inputs"]),
    ]
    expected = reference(same, method, losses)
    norm = torch.cat([g.flatten() for g in expected]).norm()
    assert 0.5 < norm < 1e3
    factor = min(1.0, limit / float(norm))
    found = step(trained, **({"gradient_clip_val": limit} if method == "sum" else {}))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, factor * theirs, rtol=1e-5, atol=1e-9)


def test_experiments_configure_the_same_problems():
    register()
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        penalized = compose("train", overrides=["experiment=classification_l2"])
        clipped = compose("train", overrides=["experiment=classification_reconstruction"])
    assert list(penalized.tasks) == ["left", "l2"]
    assert penalized.tasks.l2.weight == 0.01
    assert list(penalized.tasks.l2.parameters) == ["trunk.*"]
    assert {name: task.get("weight") for name, task in clipped.tasks.items()} == {
        "left": 1.0,
        "reconstruction": 0.5,
    }
    assert (clipped.trainer.gradient_clip_val, clipped.trainer.gradient_clip_algorithm) == (0.5, "norm")
