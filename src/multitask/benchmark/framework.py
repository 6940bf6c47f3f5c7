"""The overhead of the Trainer, callbacks and loggers, compared with a hand-written loop."""

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
from multitask.benchmark.methods import Method
from multitask.benchmark.problems import CLASSES, TRUNKS, Problem
from multitask.benchmark.reference import Reference
from multitask.benchmark.timing import Effort, PeakMemory, peak_mib
from multitask.data.base import DataModule
from multitask.module import MultiTaskModule
from multitask.run import tracking
from multitask.run.build import build_data, build_module, build_trainer
from multitask.run.combiner import build_combiner
from multitask.step import Step
from multitask.weighting.base import WeightedMethod

TRUNK = "lenet"
_TURN = 10  # steps per turn, and per line of the loggers


class HandWritten(Method):
    """A training loop in plain torch with the same step, weighting and optimizer, which logs nothing.

    ``arrays``: all training examples.
    """

    def __init__(self, problem: Problem, arrays: dict[str, Tensor], weighting: WeightedMethod) -> None:
        super().__init__(problem)
        self._arrays = arrays
        self._step = Step(weighting)
        self._optimizer = torch.optim.Adam([*problem.shared, *problem.own], lr=1e-3)
        self._size = problem.examples
        self._order: list[Tensor] = []

    def step(self) -> None:
        """Take the next batch and update the parameters."""
        if not self._order:
            self._order = list(torch.randperm(len(self._arrays["inputs"])).split(self._size))
        indices = self._order.pop()
        self.problem.batch = {name: values[indices] for name, values in self._arrays.items()}
        super().step()
        self._optimizer.step()

    def fill(self) -> None:
        """Compute the ``.grad`` of all parameters."""
        self._step.backward(self.outputs(self.problem)[1])


class _Alternate(Callback):
    """Times the Trainer and the hand-written loop, which take turns of ``_TURN`` steps.

    A turn of the Trainer lasts from the start of one step to the start of the step ``_TURN`` later; it therefore
    includes as many batches, steps and callbacks, and one line of the loggers.
    """

    def __init__(self, loop: HandWritten) -> None:
        self._loop = loop
        self._batch: Any = None
        self._memory = PeakMemory()
        self._began = 0.0
        self.seconds: dict[str, list[float]] = {"loop": [], "ours": []}
        self.peaks: dict[str, float] = {}
        self.errors: dict[str, float] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch
        # The gradients of the first step are checked, and the memory of the second is measured.
        if batch_idx == 1:
            self._memory.__enter__()
        elif batch_idx == 2:
            self._memory.__exit__()
            self.peaks["ours"] = self._memory.mib
        elif batch_idx and batch_idx % _TURN == 0:
            now = time.perf_counter()
            if self._began:
                self.seconds["ours"].append((now - self._began) / _TURN)
                for _ in range(_TURN):
                    self._loop.step()
                self.seconds["loop"].append((time.perf_counter() - now) / _TURN)
            self._began = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step:
            return
        assert isinstance(pl_module, MultiTaskModule)
        problem = _problem_of(pl_module, self._batch)
        reference = Reference(problem)
        self.errors["ours"] = reference.error(problem, "own")
        self._loop.problem.batch = self._batch
        self.peaks["loop"] = peak_mib(self._loop.fill)
        self.errors["loop"] = reference.error(self._loop.problem, "own")


def measure_framework(tasks: int, effort: Effort, device: str, seed: int) -> Iterator[Cell]:
    """Measure training by the Trainer with everything logged, relative to the hand-written loop."""
    batch = TRUNKS[TRUNK].batch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = (2 + effort.rounds) * _TURN + 1
        config = _config(tasks, folder, device, seed, steps)
        _write_data(folder / "data.npz", tasks, steps * batch, seed)
        data = build_data(config)
        module = build_module(config, data)
        assert isinstance(module, MultiTaskModule)
        assert isinstance(data, DataModule)
        trainer, _ = build_trainer(config, folder, module.automatic_optimization)
        weighting = build_combiner(config, module.names)
        assert isinstance(weighting, WeightedMethod)
        split: Any = data.splits["train"]
        arrays = {name: values.to(device) for name, values in split.items()}
        first = {name: values[:batch] for name, values in arrays.items()}
        alternate = _Alternate(HandWritten(_problem_of(deepcopy(module), first), arrays, weighting))
        trainer.callbacks.append(alternate)  # type: ignore[attr-defined]
        try:
            tracking.start(trainer.loggers, {})
            trainer.fit(module, datamodule=data)
        finally:
            tracking.finish(0)
    seconds = {method: median(turns) for method, turns in alternate.seconds.items()}
    for method, time_of_step in seconds.items():
        cost = time_of_step / seconds["loop"], time_of_step * 1e3, alternate.peaks[method]
        yield Cell("framework", TRUNK, tasks, batch, method, *cost, alternate.errors[method])


def _problem_of(module: MultiTaskModule, batch: dict[str, Tensor]) -> Problem:
    heads = nn.ModuleList(task.head for task in module.by_name.values() if task.head is not None)
    return Problem(TRUNK, module.trunk, heads, batch)


def _config(tasks: int, folder: Path, device: str, seed: int, steps: int) -> DictConfig:
    """Return the config of a usual run, with the default callbacks and loggers but without the progress bar."""
    config = hydra.compose(
        "train",
        [
            "data=npz",
            f"data.path={folder / 'data.npz'}",
            f"data.batch_size={TRUNKS[TRUNK].batch}",
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
            # Its tags interpolate Hydra's choices, which are those of the benchmark.
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
