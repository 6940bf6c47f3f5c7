"""Heads on a trunk without trained parameters train on their own losses."""

import pytest
import torch
from torch import nn

from tests.conftest import Arrays, arrays, build, fit
from tests.unit.weighting.members import FEW, NAMES, make, number_of_tasks
from tests.unit.weighting.promises import is_jacobian_method

RATE = 0.1


@pytest.mark.smoke(*(f"{name}-frozen" for name in NAMES), *(f"{name}-parameterless" for name in FEW))
@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["frozen", "parameterless"])
@pytest.mark.parametrize("name", NAMES)
def test_heads_learn(name: str, trunk: str) -> None:
    m = number_of_tasks(name)
    part: nn.Module = nn.Sequential(nn.Linear(5, 4), nn.Tanh()).requires_grad_(False)
    if trunk == "parameterless":
        part = nn.Sequential(nn.ZeroPad1d((0, -1)), nn.Tanh())
    module = build(make(name, m), tasks=m, trunk=part)
    data = arrays(m)
    heads = {n: p for n, p in module.named_parameters() if n.startswith("tasks")}
    losses = [outcome.loss for outcome in module(data)]
    own = torch.autograd.grad(torch.stack(losses).sum(), list(heads.values()))
    before = {n: p.detach().clone() for n, p in heads.items()}
    fit(module, Arrays(data))
    for (n, p), gradient in zip(heads.items(), own, strict=True):
        found = (before[n] - p.detach()) / RATE
        assert found.any(), n
        if is_jacobian_method(name) and name != "db_mtl":
            torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-10, msg=n)
