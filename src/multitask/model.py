"""Trunk and heads: what they predict, what they lose, and what they measure on a split."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from multitask.data.loading import Loader
from multitask.distributed import mean_over_processes
from multitask.measurement import Figures, Measurement, logged
from multitask.penalty import Penalty
from multitask.task import Batch, Outcome, Task, few_of, split_features


class MultiTaskModel(LightningModule):
    """Shared trunk + per-task heads, validated and tested; how they are trained is its subclass's affair.

    Args:
        trunk: Inputs → features: one tensor for all tasks, or a mapping with one a task.
        tasks: The tasks by name, in the order of the losses.
    """

    def __init__(self, trunk: nn.Module, tasks: Mapping[str, Task | Penalty]) -> None:
        super().__init__()
        self.trunk = trunk
        self.tasks = nn.ModuleDict(tasks)
        self.figures: dict[tuple[str, str], float] = {}
        """What was last measured by :meth:`measure`, by task and metric."""
        self.validated: dict[str, float] = {}
        """What the last validation logged, and its epoch."""
        self._split = "test"
        self._measurement = Measurement(self.by_name)

    @cached_property
    def names(self) -> list[str]:
        """The tasks' names, in the order of the losses."""
        return list(self.tasks)

    @cached_property
    def by_name(self) -> dict[str, Task]:
        """The tasks that have a head, by name."""
        return {name: task for name, task in self.tasks.items() if isinstance(task, Task)}

    def penalty(self, name: str) -> Tensor:
        """Return the loss of a task that is a penalty, a scalar."""
        task = self.tasks[name]
        assert isinstance(task, Penalty)
        with _naming(name):
            return task(self.named_parameters())

    def penalties_on(self, parameter: nn.Parameter) -> list[str]:
        """Return the penalties that a parameter is part of."""
        penalties = ((name, task) for name, task in self.tasks.items() if isinstance(task, Penalty))
        return [
            name
            for name, task in penalties
            if any(parameter is p for p in task.chosen(self.named_parameters()).values())
        ]

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.trainer.world_size if self._trainer else 1

    def features(self, inputs: Tensor) -> list[Tensor]:
        """Return the features of each task that has a head."""
        return split_features(self.trunk(inputs), list(self.by_name))

    def outcomes(
        self, features: list[Tensor], batch: Batch, groups: Tensor | None = None, count: int = 1
    ) -> list[list[Outcome]]:
        """Return what each task makes of its features: one list of tasks a group of examples."""
        by_task = []
        for (name, task), of_task in zip(self.by_name.items(), features, strict=True):
            with _naming(name):
                by_task.append(
                    [task(of_task, batch)] if groups is None else task.by_group(of_task, batch, groups, count)
                )
        return [list(of_group) for of_group in zip(*by_task, strict=True)]

    def each(self, features: list[Tensor], batch: Batch) -> Tensor:
        """Return the loss of each example and task, shape ``[batch, m]``."""
        columns = []
        for (name, task), of_task in zip(self.by_name.items(), features, strict=True):
            with _naming(name):
                columns.append(task.each(of_task, batch))
        return torch.stack(columns, dim=1)

    def forward(self, batch: Batch) -> list[Outcome]:
        """Return loss, prediction and target of each task that has a head."""
        return self.outcomes(self.features(batch["inputs"]), batch)[0]

    def losses(self, batch: Batch) -> Tensor:
        """Return the mean losses ``[m]`` of a batch, over all processes, penalties among them."""
        outcomes = dict(zip(self.by_name, self(batch), strict=True))
        losses = torch.stack(
            [outcomes[name].loss if name in outcomes else self.penalty(name) for name in self.names]
        )
        if self.processes > 1:
            masses = [float(outcomes[name].count) if name in outcomes else 1.0 for name in self.names]
            losses = mean_over_processes(losses, torch.tensor(masses, device=self.device))
        return losses

    def on_validation_start(self) -> None:
        """Measure by the first process's running statistics: those that a checkpoint holds."""
        if self.processes > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update losses and metrics of the validation split."""
        self._measurement.update(self.by_name, self(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update losses and metrics of the split that :meth:`measure` measures."""
        self._measurement.update(self.by_name, self(batch))

    def on_validation_epoch_end(self) -> None:
        """Log losses and metrics of the validation split, and keep them for schedulers that watch one."""
        found = logged(self._measured(), "val")
        if not self.trainer.sanity_checking:
            self.validated = {"epoch": self.current_epoch} | {
                key: float(value) for key, value in found.items()
            }
        self.log_dict(found, sync_dist=self.processes > 1)

    def on_test_epoch_end(self) -> None:
        """Log and keep losses and metrics of the split that :meth:`measure` measures."""
        figures = self._measured()
        self.figures = {key: float(value) for key, value in figures.items()}
        # Curves of a split stay apart from the figures of the chosen weights.
        prefix = self._split if self._split == "test" else f"final/{self._split}"
        self.log_dict(logged(figures, prefix), sync_dist=self.processes > 1)

    @torch.no_grad()
    def validation_keys(self, batch: Batch) -> list[str]:
        """Return the keys that validation logs, found by measuring a few examples of ``batch``."""
        self.eval()
        self._measurement.update(self.by_name, self(few_of(batch)))
        keys = list(logged(self._measured(), "val"))
        self.train()
        return keys

    def measure(self, trainer: Trainer, loader: Loader, split: str) -> dict[tuple[str, str], float]:
        """Return the figures of the present weights on a split, by task and metric (``loss`` among them)."""
        self._split = split
        trainer.test(self, dataloaders=loader, verbose=False)
        return self.figures

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """Return whether more of a metric is better; ``None`` where the metric does not say."""
        return False if metric == "loss" else self.by_name[task].metrics[metric].higher_is_better

    def _measured(self) -> Figures:
        figures = self._measurement.finish(self.by_name)
        penalties = [name for name in self.names if name not in self.by_name]
        return figures | {(name, "loss"): self.penalty(name).detach() for name in penalties}


@contextmanager
def _naming(task: str) -> Iterator[None]:
    """Name the task in what goes wrong inside."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"tasks.{task}: {error}") from error
