"""Small problems and pytest settings shared by all tests."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import settings
from lightning import Trainer
from torch import Tensor, nn

from multitask.data.base import DataModule, Split
from multitask.gradients.rows import Rows
from multitask.gradients.task_gradients import Engine
from multitask.lightning.parts import LossAndCount
from multitask.module import MultiTaskModule
from multitask.task.task import Task
from multitask.weighting.base import Combiner

# The duration of an example depends on the load of the machine.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


class Arrays(DataModule):
    """Data module over given tensors, not shuffled."""

    def __init__(self, train: dict[str, Tensor], batch_size: int | None = None) -> None:
        super().__init__(batch_size)
        self.arrays = train

    def load(self) -> dict[str, Split]:
        return {"train": self.arrays}

    def train_dataloader(self) -> Any:
        loader = self.loader("train", training=True)
        loader.shuffle = False
        return loader


def arrays(
    tasks: int = 3, count: int = 24, width: int = 5, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, width, generator=generator, dtype=dtype)
    targets = {f"t{i}": torch.randn(count, 2, generator=generator, dtype=dtype) for i in range(tasks)}
    return {"inputs": inputs, **targets}


def regression(name: str, width: int = 4, **options: Any) -> Task:
    return Task(nn.Linear(width, 2), nn.MSELoss(), target=name, **options)


class WithTraces(MultiTaskModule):
    """Returns the losses as traces: any positive numbers will do."""

    def traces(self, batch: Any) -> Mapping[str, LossAndCount]:
        return self.losses(batch)


def build(
    weighting: Combiner,
    *,
    tasks: int = 3,
    trunk: nn.Module | None = None,
    heads: dict[str, Task] | None = None,
    engine: Engine | None = None,
    weighted_heads: bool = False,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    dtype: torch.dtype = torch.float64,
    **keys: Any,
) -> MultiTaskModule:
    """Return a small module; keys of the Trainer imply manual optimization, and :func:`fit` passes them on."""
    torch.manual_seed(0)
    trunk = trunk or nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
    heads = heads or {f"t{i}": regression(f"t{i}") for i in range(tasks)}
    module = WithTraces(
        trunk,
        heads,
        weighting=weighting,
        optimizer=optimizer or (lambda groups: torch.optim.SGD(groups, lr=0.1)),
        engine=engine or Rows(),
        heads="weighted" if weighted_heads else "own",
        manual=True if keys else None,
    ).to(dtype)
    module.trainer_keys = keys
    return module


def fit(
    module: MultiTaskModule, data: DataModule, steps: int = 1, ckpt_path: Any = None, **options: Any
) -> Trainer:
    """Train for ``steps`` steps without output and return the Trainer."""
    options = {"logger": False, **getattr(module, "trainer_keys", {}), **options}
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        precision="64-true" if module.dtype == torch.float64 else "32-true",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def gradients_of_step(before: Sequence[Tensor], module: MultiTaskModule, rate: float = 0.1) -> list[Tensor]:
    """Return the gradient of one plain SGD step, from the change of the parameters."""
    return [(b - a.detach()) / rate for b, a in zip(before, module.parameters(), strict=True)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Restrict `smoke` to the cases it names, and skip `gpu` tests without a GPU."""
    cases: dict[str, dict[str, pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        function, _, case = item.nodeid.partition("[")
        cases.setdefault(function, {})[case.removesuffix("]")] = item
    for function, by_case in cases.items():
        mark = next(iter(by_case.values())).get_closest_marker("smoke")
        if mark is None or not mark.args:
            continue
        unknown = set(mark.args) - set(by_case)
        if unknown and not any("::" in argument for argument in config.args):
            raise pytest.UsageError(f"{function} has no case {sorted(unknown)} to be marked smoke")
        for case in set(by_case) - set(mark.args):
            item = by_case[case]
            item.own_markers = [own for own in item.own_markers if own.name != "smoke"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
