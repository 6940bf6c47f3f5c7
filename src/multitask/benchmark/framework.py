"""The overhead of Trainer, callbacks and loggers over a hand-written loop."""

import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from multitask.benchmark.cells import Cell
from multitask.benchmark.problems import CLASSES, TRUNKS, Problem
from multitask.benchmark.reference import Reference
from multitask.benchmark.timing import Effort, PeakMemory
from multitask.data.base import DataModule
from multitask.module import MultiTaskModule
from multitask.run import tracking
from multitask.run.build import build_data, build_module, build_trainer
from multitask.run.combiner import build_combiner
from multitask.step import Step
from multitask.weighting.base import WeightedMethod

TRUNK = "lenet"
# Steps of one turn: as many as between two lines of the loggers.
_TURN = 10


class HandWritten:
    """A training loop in plain torch with the same autodiff, combiner and optimizer, which logs nothing.

    Args:
        problem: Its parameters become the loop's own.
        arrays: All training examples.
        weighting: The combiner.
    """

    def __init__(self, problem: Problem, arrays: dict[str, Tensor], weighting: WeightedMethod) -> None:
        self.problem = problem
        self._arrays = arrays
        self._step = Step(weighting)
        self._optimizer = torch.optim.Adam([*problem.shared, *problem.own], lr=1e-3)
        self._size = problem.examples
        self._order: list[Tensor] = []

    def step(self) -> None:
        """Take the next batch and one step of the optimizer."""
        if not self._order:
            self._order = list(torch.randperm(len(self._arrays["inputs"])).split(self._size))
        indices = self._order.pop()
        self.problem.batch = {name: values[indices] for name, values in self._arrays.items()}
        self._optimizer.zero_grad()
        self.fill()
        self._optimizer.step()

    def fill(self) -> None:
        """Fill the gradients."""
        features = self.problem.trunk(self.problem.batch["inputs"])
        self._step.backward(self.problem.losses(features))


class _Alternate(Callback):
    """Lets the hand-written loop take a turn between turns of the Trainer, and times both.

    A turn of the Trainer goes from the start of one step to the start of the step ``_TURN`` later, and so
    holds as many batches, steps, callbacks and, at its end, one line of the loggers.
    """

    def __init__(self, loop: HandWritten) -> None:
        self._loop = loop
        self._batch: Any = None
        self._memory = PeakMemory()
        self._began = 0.0
        self.theirs: list[float] = []
        self.ours: list[float] = []
        self.peak = self.error = self.loop_peak = self.loop_error = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch
        # The first step is that whose gradients are checked, the second that whose memory is measured.
        if batch_idx == 1:
            self._memory.__enter__()
        elif batch_idx == 2:
            self._memory.__exit__()
            self.peak = self._memory.mib
        elif batch_idx and batch_idx % _TURN == 0:
            now = time.perf_counter()
            if self._began:
                self.ours.append((now - self._began) / _TURN)
                self.theirs.append(self._turn())
            self._began = time.perf_counter()

    def _turn(self) -> float:
        start = time.perf_counter()
        for _ in range(_TURN):
            self._loop.step()
        return (time.perf_counter() - start) / _TURN

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step:
            return
        assert isinstance(pl_module, MultiTaskModule)
        assert self._batch is not None
        problem = _problem_of(pl_module, self._batch)
        reference = Reference(problem)
        self.error = reference.error(problem, "own")
        with PeakMemory() as memory:
            self._loop.problem.batch = self._batch
            self._loop.fill()
        self.loop_peak = memory.mib
        self.loop_error = reference.error(self._loop.problem, "own")
        self._loop.problem.clear()


def measure_framework(tasks: int, effort: Effort, device: str, seed: int) -> Iterator[Cell]:
    """Measure the Trainer, everything logged, beside the loop; times are relative to the loop's.

    Args:
        tasks: How many heads the LeNet has.
        effort: How long to measure.
        device: ``cpu`` or ``cuda``.
        seed: Of data and model.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turns = 2 + effort.rounds
        config = _config(tasks, folder, device, seed, steps=turns * _TURN + 1)
        _write_data(folder / "data.npz", tasks, (turns * _TURN + 1) * TRUNKS[TRUNK].batch, seed)
        data = build_data(config)
        module = build_module(config, data)
        assert isinstance(module, MultiTaskModule)
        assert isinstance(data, DataModule)
        trainer, _ = build_trainer(config, folder, module.automatic_optimization)
        combiner = build_combiner(config, module.names)
        assert isinstance(combiner, WeightedMethod)
        split: Any = data.splits["train"]
        arrays = {name: values.to(device) for name, values in split.items()}
        first = {name: values[: config.data.batch_size] for name, values in arrays.items()}
        alternate = _Alternate(HandWritten(_problem_of(deepcopy(module), first), arrays, combiner))
        trainer.callbacks.append(alternate)  # type: ignore[attr-defined]
        try:
            tracking.start(trainer.loggers, {})
            trainer.fit(module, datamodule=data)
        finally:
            tracking.finish(0)
    loop, ours = median(alternate.theirs), median(alternate.ours)
    rows = (
        ("loop", loop, alternate.loop_peak, alternate.loop_error),
        ("ours", ours, alternate.peak, alternate.error),
    )
    for method, seconds, peak, error in rows:
        yield Cell(
            "framework", TRUNK, tasks, TRUNKS[TRUNK].batch, method, seconds / loop, seconds * 1e3, peak, error
        )


def _problem_of(module: MultiTaskModule, batch: dict[str, Tensor]) -> Problem:
    heads = nn.ModuleList(task.head for task in module.by_name.values() if task.head is not None)
    return Problem(TRUNK, module.trunk, heads, batch)


def _config(tasks: int, folder: Path, device: str, seed: int, steps: int) -> DictConfig:
    """Return the config of a user's run: all of the default callbacks and loggers, but the progress bar's line."""
    config = hydra.compose(
        "train",
        [
            "data=npz",
            f"data.path={folder / 'data.npz'}",
            "data.split=split",
            "task=[]",
            f"trunk={TRUNK}",
            "weighting=upgrad",
            f"trainer={'gpu' if device == 'cuda' else 'cpu'}",
            f"trainer.max_steps={steps}",
            "trainer.max_epochs=1",
            "trainer.enable_progress_bar=false",
            f"trainer.log_every_n_steps={_TURN}",
            "selection.metric=null",
            f"run_folder={folder}",
            "experiment_name=benchmark",
            "method=upgrad",
            "sweep=null",
            "variant=benchmark",
            f"seed={seed}",
            # Its tags name Hydra's choices, which are those of the benchmark here.
            "logger.wandb.tags=[]",
        ],
    )
    with open_dict(config):
        config.tasks = {
            f"t{i}": {
                "_target_": "multitask.task.Task",
                "target": f"t{i}",
                "head": {"_target_": "torch.nn.LazyLinear", "out_features": CLASSES},
                "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
            }
            for i in range(tasks)
        }
    return config


def _write_data(path: Path, tasks: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    arrays: dict[str, Any] = {f"t{i}": numbers.integers(CLASSES, size=count) for i in range(tasks)}
    arrays["inputs"] = numbers.standard_normal((count, *TRUNKS[TRUNK].shape), dtype=np.float32)
    np.savez(path, split=np.zeros(count, dtype=np.int64), **arrays)
