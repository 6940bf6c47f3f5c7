"""Trunk and heads as a LightningModule: what they predict, what they lose, and what they measure on a split."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from multitask.lightning.figures import Figures, logged
from multitask.lightning.module import LossAndCount, MultiLossModule
from multitask.measurement import Measurement
from multitask.penalty import Penalty
from multitask.task import Batch, Outcome, Task, split_features
from multitask.weighting.base import Rows


class MultiTaskModule(MultiLossModule):
    """A shared trunk with one head per task, trained by any weighting.

    Args:
        trunk: Inputs → features: one tensor for all tasks, or a mapping with one per task.
        tasks: The tasks by name, in the order of the losses.
        inputs: The key of the trunk's inputs in the batch, or several keys; see :func:`call_with_inputs`.
        options: As for :meth:`multitask.lightning.module.MultiLossModule.train_with`.
    """

    def __init__(
        self,
        trunk: nn.Module,
        tasks: Mapping[str, Task | Penalty],
        inputs: str | Sequence[str] = "inputs",
        **options: Any,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tasks = nn.ModuleDict(tasks)
        self.inputs = inputs
        self.names = list(tasks)
        self._compiled: list[Any] = []
        self._measurement = Measurement(self.by_name)
        if options:
            self.train_with(**options)

    @cached_property
    def by_name(self) -> dict[str, Task]:
        """The tasks that have a head, by name."""
        return {name: task for name, task in self.tasks.items() if isinstance(task, Task)}

    def compile_trunk(self) -> None:
        """Run the trunk by ``torch.compile`` from now on; its parameters keep their names."""
        torch._functorch.config.donated_buffer = False  # the graph is walked once per row
        # In a list, so that it is no submodule; a module's own compile() would leave a bare nn.Sequential as it is.
        self._compiled = [torch.compile(self.trunk)]

    def penalty(self, name: str) -> Tensor:
        """Return the loss of a task that is a penalty, a scalar."""
        task = self.tasks[name]
        assert isinstance(task, Penalty)
        with _naming(name):
            return task(self.named_parameters())

    def features(self, batch: Batch) -> list[Tensor]:
        """Return the features of each task that has a head."""
        trunk = self._compiled[0] if self._compiled else self.trunk
        return split_features(call_with_inputs(trunk, batch, self.inputs), list(self.by_name))

    def outcomes(
        self, features: list[Tensor], batch: Batch, groups: Tensor | None = None, count: int = 1
    ) -> list[list[Outcome]]:
        """Return what each task makes of its features: one list of tasks per group of examples."""
        by_task, at = [], ""
        try:
            for (name, task), of_task in zip(self.by_name.items(), features, strict=True):
                at = name
                by_task.append(
                    [task(of_task, batch)] if groups is None else task.by_group(of_task, batch, groups, count)
                )
        except (KeyError, ValueError, RuntimeError, IndexError) as error:
            raise ValueError(f"tasks.{at}: {error}") from error
        return [list(of_group) for of_group in zip(*by_task, strict=True)]

    def forward(self, batch: Batch) -> list[Outcome]:
        """Return loss, prediction and target of each task that has a head."""
        return self.outcomes(self.features(batch), batch)[0]

    def losses(self, batch: Batch) -> dict[str, LossAndCount]:
        """Return the mean loss of each task, penalties among them, with its count where it is not the examples'."""
        outcomes = dict(zip(self.by_name, self(batch), strict=True))
        whole = self.window == 1 and self.processes == 1
        found: dict[str, LossAndCount] = {}
        for name in self.names:
            if name not in outcomes:
                found[name] = self.penalty(name)
            elif (whole and not self.by_name[name].missing) or self.by_name[name].counts_examples:
                found[name] = outcomes[name].loss
            else:
                found[name] = (outcomes[name].loss, outcomes[name].count)
        return found

    def losses_by_part(self, batch: Batch, rows: Rows) -> dict[str, LossAndCount]:
        """Return losses of halves, ``[2]``, or of examples, ``[batch]``, from one forward pass."""
        features = self.features(batch)
        if rows == "example":
            if len(self.by_name) < len(self.names):
                raise ValueError("a penalty has no loss per example, and the weighting has a row for each.")
            each: dict[str, LossAndCount] = {}
            for (name, task), of_task in zip(self.by_name.items(), features, strict=True):
                with _naming(name):
                    each[name] = task.each(of_task, batch)
            return each
        # Alternating, so that halves of micro-batches join to halves of the whole.
        groups = torch.arange(int(self.examples(batch)), device=features[0].device) % 2
        by_half = [
            dict(zip(self.by_name, half, strict=True)) for half in self.outcomes(features, batch, groups, 2)
        ]
        found: dict[str, LossAndCount] = {}
        for name in self.names:
            if name in self.by_name:
                losses = torch.stack([half[name].loss for half in by_half])
                counts = [torch.as_tensor(half[name].count, dtype=torch.float64).cpu() for half in by_half]
                found[name] = (losses, torch.stack(counts))
            else:
                found[name] = (self.penalty(name).expand(2), torch.ones(2))
        return found

    def examples(self, batch: Batch) -> float:
        """Return how many examples a batch has: those of its first target, whatever its inputs are made of."""
        target = batch[next(iter(self.by_name.values())).target]
        return float(len(target)) if isinstance(target, Tensor) else super().examples(batch)

    @property
    def labels_can_be_missing(self) -> bool:
        """Whether a task can be absent from a step."""
        return any(task.missing for task in self.by_name.values())

    def add_measured(self, batch: Batch) -> None:
        """Add a batch to the tasks' losses and metrics."""
        self._measurement.update(self.by_name, self(batch))

    def measured(self) -> Figures:
        """Return losses and metrics since the last call, over all processes."""
        figures = self._measurement.finish(self.by_name)
        penalties = [name for name in self.names if name not in self.by_name]
        return {**figures} | {(name, "loss"): float(self.penalty(name)) for name in penalties}

    def keys_of(self, names: Iterable[str]) -> set[str]:
        """Return the keys that validation logs where these tasks have labels; penalties need none."""
        metrics = {
            name: ["loss", *self.by_name[name].metrics] if name in self.by_name else ["loss"]
            for name in names
        }
        return set(logged({(name, metric): 0.0 for name, own in metrics.items() for metric in own}, "val"))

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """Return whether more of a metric is better; ``None`` where the metric does not say."""
        return False if metric == "loss" else self.by_name[task].metrics[metric].higher_is_better


def call_with_inputs(trunk: Any, batch: Batch, inputs: str | Sequence[str]) -> Any:
    """Return what a trunk makes of a batch's inputs, which several keys name or one.

    What lies under one key goes in as it is: a tensor, a tuple, an object. A mapping goes in by keyword where the
    trunk takes these keywords, and as one argument where it does not. Several keys go in by keyword.

    Raises:
        KeyError: If the batch has no such key.
    """
    if not isinstance(inputs, str):
        return trunk(**{key: batch[key] for key in inputs})
    given = batch[inputs]
    if isinstance(given, Mapping) and _takes(trunk, given):
        return trunk(**given)
    return trunk(given)


def _takes(trunk: Any, keywords: Mapping[str, Any]) -> bool:
    try:
        signature(getattr(trunk, "_orig_mod", trunk).forward).bind(
            **keywords
        )  # torch.compile's keeps the module there
    except TypeError:
        return False
    return True


@contextmanager
def _naming(task: str) -> Iterator[None]:
    """Name the task in what goes wrong inside."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"tasks.{task}: {error}") from error
