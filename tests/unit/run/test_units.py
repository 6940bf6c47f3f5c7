"""Tasks that share a prediction must have the same units."""

import pytest
import torch
from torch import Tensor, nn

from multitask.errors import ConfigError
from multitask.module import MultiTaskModule
from multitask.run.initialization import initialize
from multitask.task.derived import PredictionOf
from multitask.task.targets import Shown, Standardized, Transform
from multitask.task.task import Task

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(30, 3, generator=GENERATOR)
NUMBERS = torch.randn(30, 2, generator=GENERATOR) + 1e5
DIFFERENT = {"another mean": NUMBERS + 1.0, "another deviation": 1e5 + (NUMBERS - 1e5) * 1.1}


def fitted(target: Tensor) -> Standardized:
    transform = Standardized()
    transform.observe(target)
    transform.finish()
    return transform


def start(first: Transform | None, second: Transform | None, target: Tensor = NUMBERS) -> None:
    arrays = {"inputs": INPUTS, "a": NUMBERS, "b": target}
    tasks = {
        "a": Task(nn.Linear(3, 2), nn.MSELoss(), target="a", transform=first),
        "b": Task(None, nn.L1Loss(), target="b", transform=second, prediction=PredictionOf("a")),
    }
    initialize(MultiTaskModule(nn.Identity(), tasks), arrays, 0, {"train": arrays})


@pytest.mark.parametrize("transform", [None, Shown(torch.abs), fitted(NUMBERS)])
def test_same_units_pass(transform: Transform | None) -> None:
    start(transform, transform)


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_statistics_are_rejected(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"tasks\.b: .* tasks\.a, in deviations .* 'a' .* give both the same target"
    ):
        start(fitted(NUMBERS), fitted(DIFFERENT[name]), DIFFERENT[name])


@pytest.mark.parametrize("which", [0, 1])
def test_only_one_standardized_target_is_rejected(which: int) -> None:
    pair: list[Transform | None] = [None, None]
    pair[which] = fitted(NUMBERS)
    with pytest.raises(ConfigError, match=r"the units of the target '[ab]'"):
        start(*pair)
