"""Tasks that are switched on and off by epoch: the others train as without them, also after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multitask import MultiLossModule, UPGrad
from multitask.callbacks.schedule import Schedule
from multitask.errors import ConfigError
from multitask.module import MultiTaskModule
from multitask.run.checks import keep_only
from multitask.weighting.upgrad import UPGrad as Own
from tests.conftest import Arrays as Data
from tests.conftest import arrays, build, fit
from tests.unit.in_process import composed, trained

KEYS = ["experiment=abalone", "callbacks=schedule", "data.batch_size=128", "trainer.limit_train_batches=4"]


def scheduled(tasks: str) -> str:
    return f"callbacks.schedule.tasks={{{tasks}}}"


def state(module: MultiTaskModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.smoke("weighted_sum-1", "upgrad-2")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "window"), [("weighted_sum", 1), ("imtl_l", 1), ("famo", 2), ("modo", 1), ("upgrad", 2)]
)
def test_a_task_that_is_off_does_not_affect_the_others(tmp_path: Path, method: str, window: int) -> None:
    keys = [*KEYS, f"weighting={method}", f"trainer.accumulate_grad_batches={window}", "trainer.max_epochs=1"]
    late = scheduled("sex:{from_epoch:1},rings:{weight:[[0,1],[3,0.1]]}")
    found, _ = trained(tmp_path / "all", *keys, late)
    expected, _ = trained(
        tmp_path / "two",
        *keys,
        "task=[abalone/rings,abalone/shell_weight]",
        scheduled("rings:{weight:[[0,1]]}"),
    )
    parameters = dict(found.named_parameters())
    for name, value in expected.named_parameters():
        if not name.startswith("weighting."):
            torch.testing.assert_close(parameters[name], value, rtol=1e-5, atol=1e-7, msg=name)
    # Its own parameters do not change: Adam skips those without a gradient.
    start, _ = trained(
        tmp_path / "start", *keys, late, "trainer.limit_train_batches=0", "selection.metric=null"
    )
    for name, value in start.named_parameters():
        if name.startswith("tasks.sex."):
            assert torch.equal(parameters[name], value), name
    assert {key for key in found.validated if "sex" in key} == {"val/loss/sex", "val/sex/accuracy"}


@pytest.mark.parametrize("method", ["weighted_sum", "upgrad"])
def test_a_factor_multiplies_the_loss(tmp_path: Path, method: str) -> None:
    keys = [*KEYS, f"weighting={method}", "trainer.max_epochs=1", "optimizer=sgd"]
    found, _ = trained(tmp_path / "a", *keys, scheduled("sex:{weight:[[0,0.25]]}"))
    expected, _ = trained(tmp_path / "b", *keys, "callbacks=default", "+tasks.sex.weight=0.25")
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other), name
    # Validation measures the loss without the factor.
    assert found.validated["val/loss/sex"] == pytest.approx(4 * expected.validated["val/loss/sex"])


@pytest.mark.smoke("upgrad-6")
@pytest.mark.slow
@pytest.mark.parametrize(("method", "steps"), [("weighted_sum", 8), ("upgrad", 6), ("famo", 6)])
def test_a_run_resumes_bit_for_bit(tmp_path: Path, method: str, steps: int) -> None:
    tasks = (
        "sex:{from_epoch:1,until_epoch:2},rings:{weight:[[0,1],[2,0.5]]},shell_weight:{weight:[[1,1],[2,0]]}"
    )
    keys = [*KEYS, f"weighting={method}", "trainer.max_epochs=3", scheduled(tasks)]
    whole, _ = trained(tmp_path / "whole", *keys)
    trained(tmp_path / "first", *keys, f"trainer.max_steps={steps}")
    rest, trainer = trained(tmp_path / "rest", *keys, resume=tmp_path / "first" / "checkpoints" / "last.ckpt")
    assert trainer.global_step == 12
    for (name, one), other in zip(whole.named_parameters(), rest.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_factors_by_epoch() -> None:
    schedule = Schedule({"a": {"from_epoch": 1, "until_epoch": 4, "weight": [[0, 1], [4, 0]]}})
    assert [schedule.factor("a", epoch) for epoch in range(6)] == [0, 0.75, 0.5, 0.25, 0, 0]
    assert schedule.factor("b", 9) == 1


def test_the_head_of_a_task_that_is_off_is_not_called() -> None:
    class Counted(nn.Linear):
        calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(inputs)

    module = build(Own())
    module.tasks["t1"].head = head = Counted(4, 2, dtype=torch.float64)
    Schedule({"t1": {"from_epoch": 1}}).check(module)
    module.switch_off("one", ["t1"])
    module.switch_off("other", [])
    fit(module, Data(arrays()), steps=2)
    assert head.calls == 0
    module.switch_off("one", [])
    fit(module, Data(arrays()), steps=1)
    assert head.calls == 1


def test_losses_of_a_user_model_are_switched() -> None:
    class Mine(MultiLossModule):
        def __init__(self) -> None:
            super().__init__(weighting=UPGrad(), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
            self.net, self.heads = nn.Linear(5, 2), nn.Parameter(torch.ones(2))

        @property
        def labels_can_be_missing(self) -> bool:
            return False

        def losses(self, batch: Any) -> Any:
            out = self.net(batch["inputs"].float()) * self.heads
            return {"a": (out[:, 0] - 1).square().mean(), "b": (out[:, 1] + 2).square().mean()}

    module = Mine()
    module.names = ["a", "b"]
    Schedule({"a": {"from_epoch": 1}}).check(module)
    module.switch_off("schedule", ["a"])
    before = state(module)
    fit(module, Data(arrays()), steps=2)
    after = state(module)
    assert torch.equal(before["net.weight"][0], after["net.weight"][0])
    assert not torch.equal(before["net.weight"][1], after["net.weight"][1])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (None, r"^callbacks\.schedule\.tasks names no task"),
        ({"t9": {"from_epoch": 1}}, r"^callbacks\.schedule\.tasks\.t9: there is no task 't9'"),
        ({"t0": {"from": 1}}, r"^callbacks\.schedule\.tasks\.t0\.from is not a key of a schedule"),
        (
            {"t0": {"from_epoch": 2, "until_epoch": 2}},
            r"leaves no epoch between from_epoch=2 and until_epoch=2",
        ),
        (
            {"t0": {"weight": [[1, 1], [0, 2]]}},
            r"^callbacks\.schedule\.tasks\.t0\.weight=.* must have rising times",
        ),
        ({"t0": {"weight": [[0, -1]]}}, r"has a factor below 0"),
        ({"t0": {"weight": 0.5}}, r"\.t0\.weight=0\.5 must be a list of \[time, weight\] pairs"),
        ({"t0": {"weight": [0, 1]}}, r"must be a list of \[time, weight\] pairs"),
        ({"t0": {"weight": [[0, float("nan")]]}}, r"must have finite numbers"),
        ({"t0": {"from_epoch": "first"}}, r"\.t0: from_epoch=first and .* have to be whole numbers"),
        (
            {f"t{i}": {"from_epoch": 1} for i in range(3)},
            r"switches off all tasks in epoch 0, counted from 0",
        ),
        ({f"t{i}": {"weight": [[2, 1], [3, 0]]} for i in range(3)}, r"switches off all tasks in epoch 3"),
    ],
)
def test_invalid_schedules_are_rejected(tasks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(tasks).check(build(Own()))


def test_weightings_of_examples_are_rejected() -> None:
    module = build(Own())
    module.weighting.rows = "example"
    with pytest.raises(
        ConfigError, match=r"^callbacks\.schedule switches tasks off, and the weighting weighs"
    ):
        Schedule({"t0": {"from_epoch": 1}}).check(module)


def test_a_single_task_has_no_schedule() -> None:
    config = composed(*KEYS, scheduled("sex:{from_epoch:1}"), "only=sex", "run_folder=x")
    keep_only(config)
    assert config.callbacks.schedule is None
