"""What holds for every weighting in the training loop, each member built from its YAML."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from multitask.module import MultiTaskModule
from multitask.weighting.base import JacobianMethod
from tests.conftest import Arrays, arrays, build, fit, regression
from tests.weighting.weighting_members import NAMES, NEEDS_THREE, make

EXAMPLE_WISE = [name for name in NAMES if getattr(make(name, 5), "rows", "task") == "example"]
CUT = [name for name in NAMES if name not in EXAMPLE_WISE]


def tasks_of(name: str) -> int:
    return 5 if name in NEEDS_THREE else 3


def module_of(name: str, tasks: int, heads: dict | None = None, **manual: Any) -> MultiTaskModule:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
    method = make(name, list(heads) if heads else tasks)
    if isinstance(method, JacobianMethod):
        manual.setdefault("accumulate_grad_batches", 1)
    adam = lambda groups: torch.optim.Adam(groups, lr=0.01)  # noqa: E731
    return build(method, tasks=tasks, trunk=trunk, heads=heads, optimizer=adam, **manual)


def state(module: MultiTaskModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("name", CUT)
def test_micro_batches_equal_the_whole_batch(name: str) -> None:
    data = arrays(tasks_of(name), count=22)
    whole = module_of(name, tasks_of(name), accumulate_grad_batches=1)
    parts = module_of(name, tasks_of(name), accumulate_grad_batches=3)
    fit(whole, Arrays(data), steps=3)
    fit(parts, Arrays(data, batch_size=8), steps=3)
    assert_same(state(parts), state(whole))


@pytest.mark.parametrize("name", CUT)
def test_absent_task_leaves_the_others_alone(name: str) -> None:
    """They go as if it were not there, and it rests: its head, and what is remembered of it."""
    m = tasks_of(name) + 1
    data = arrays(m, count=12)
    absent = f"t{m - 1}"
    heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(m)}
    without = {key: values for key, values in data.items() if key != absent}
    nothing = {**data, absent: torch.full_like(data[absent], torch.nan)}
    more = module_of(name, m, heads=heads, accumulate_grad_batches=1)
    fewer = module_of(name, m - 1, heads=dict(list(deepcopy(heads).items())[:-1]), accumulate_grad_batches=1)
    own = {
        k: v for k, v in more.state_dict().items() if k.startswith(("trunk.", "tasks.")) and absent not in k
    }
    fewer.load_state_dict(own, strict=False)
    resting = deepcopy(more.by_name[absent].head.state_dict())
    fit(more, Arrays(nothing), steps=3)
    fit(fewer, Arrays(without), steps=3)
    model = {k: v for k, v in state(fewer).items() if k.startswith(("trunk.", "tasks."))}
    assert_same(state(more), model)
    assert all(torch.equal(v, resting[k]) for k, v in more.by_name[absent].head.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_training_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    data = Arrays(arrays(tasks_of(name), count=24), batch_size=6)
    whole, first, second = (module_of(name, tasks_of(name)) for _ in range(3))
    fit(whole, data, steps=7)
    fit(first, data, steps=5).save_checkpoint(tmp_path / "last.ckpt")
    fit(second, data, steps=7, ckpt_path=tmp_path / "last.ckpt")
    expected = state(whole)
    assert all(torch.equal(value, expected[key]) for key, value in state(second).items())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["upgrad", "iwmtl", "modo"])
def test_one_task_is_plain_descent(name: str, weighted: bool) -> None:
    data = arrays(1)
    module = build(make(name, 1), tasks=1, weighted_heads=weighted)
    before = state(module)
    fit(module, Arrays(data))
    assert all(value.isfinite().all() for value in state(module).values())
    assert any(not torch.equal(value, before[key]) for key, value in state(module).items())
