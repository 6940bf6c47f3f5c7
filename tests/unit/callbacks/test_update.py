"""The logged update direction points from the parameters before a step to those after it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import Mean

from multitask.callbacks.update import UpdateDirection
from multitask.errors import ConfigError
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build, fit, regression
from tests.unit.callbacks.test_conflict import Memory, rows_by_hand


def shared_of(module: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.trunk.parameters()]).clone()


def logged_by(memory: Memory) -> list[dict[str, float]]:
    prefix = "update/cosine/"
    found = [
        {k.removeprefix(prefix): v for k, v in one.items() if k.startswith(prefix)} for one in memory.logged
    ]
    return [one for one in found if one]


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("method", [UPGradWeighting, Mean])
def test_cosines_of_the_update(method: Any, make: Any) -> None:
    data = arrays()
    module = build(adapt(method()), optimizer=make)
    rows, before = rows_by_hand(module, data), shared_of(module)
    memory = Memory()
    fit(module, Arrays(data), logger=memory, log_every_n_steps=1, callbacks=[UpdateDirection(every=2)])
    update = shared_of(module) - before
    (cosines,) = logged_by(memory)
    for i, row in enumerate(rows):
        expected = nn.functional.cosine_similarity(-row, update, dim=0)
        assert cosines[f"t{i}"] == pytest.approx(expected.item(), rel=1e-9)


def test_plain_sgd_keeps_the_direction_of_upgrad_and_adam_does_not() -> None:
    found = {}
    for make in (sgd, adam):
        memory = Memory()
        module = build(adapt(UPGradWeighting()), optimizer=make)
        fit(module, Arrays(arrays()), logger=memory, log_every_n_steps=1, callbacks=[UpdateDirection()])
        (found[make],) = logged_by(memory)
    assert min(found[sgd].values()) >= -1e-6  # UPGrad conflicts with no task
    assert max(abs(found[sgd][name] - found[adam][name]) for name in found[sgd]) > 1e-2


def test_measuring_at_an_interval_does_not_affect_training() -> None:
    ends = []
    for callbacks in ([], [UpdateDirection(every=3)]):
        memory = Memory()
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4))
        module = build(adapt(UPGradWeighting()), trunk=trunk)
        data = Arrays(arrays(), batch_size=8)
        fit(module, data, 7, logger=memory, log_every_n_steps=1, callbacks=callbacks)
        ends.append(
            torch.cat([v.detach().flatten().double() for v in (*module.parameters(), *module.buffers())])
        )
    assert torch.equal(*ends)
    assert len(logged_by(memory)) == 3  # steps 0, 3 and 6


def test_a_window_is_measured_once_and_absent_tasks_have_no_cosine() -> None:
    data = arrays()
    data["t1"][:] = torch.nan
    heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(3)}
    module = build(adapt(UPGradWeighting()), heads=heads, accumulate_grad_batches=3)
    memory = Memory()
    callback = UpdateDirection(every=1)
    fit(module, Arrays(data, batch_size=8), 2, logger=memory, log_every_n_steps=1, callbacks=[callback])
    assert [set(one) for one in logged_by(memory)] == [{"t0", "t2"}] * 2


def test_an_interval_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"^callbacks\.update\.every=0 must be at least 1\.$"):
        UpdateDirection(every=0)
