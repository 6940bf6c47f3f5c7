"""The LightningModule of trunk and heads: their predictions, losses and metrics."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from multitask.lightning.metric_keys import TaskMetrics, val_keys
from multitask.lightning.module import LossAndCount, MultiLossModule
from multitask.lightning.parts import stacked
from multitask.private import keep_buffers_of_backward
from multitask.task.measurement import Measurement
from multitask.task.penalty import Penalty
from multitask.task.seen import Seen, naming, with_gradients
from multitask.task.targets import in_units
from multitask.task.task import Batch, Outcome, Task
from multitask.task.terms import Term
from multitask.weighting.base import Rows

AnyTask = Task | Term | Penalty
"""A loss of a prediction and a target, of anything that the model computes, or of parameters."""


class MultiTaskModule(MultiLossModule):
    """A shared trunk with one head per task, trained by any weighting.

    Args:
        trunk: Inputs → features: one tensor for all tasks, or a mapping with one per task, possibly in a
            :class:`multitask.nn.with_losses.WithLosses`.
        tasks: The tasks by name, in the order of the losses.
        inputs: One or several keys of the trunk's inputs in the batch; see :func:`call_with_inputs`.
        options: See :meth:`multitask.lightning.module.MultiLossModule.train_with`.
    """

    def __init__(
        self,
        trunk: nn.Module,
        tasks: Mapping[str, AnyTask],
        inputs: str | Sequence[str] = "inputs",
        **options: Any,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tasks = nn.ModuleDict(tasks)
        self.inputs = inputs
        self.names = list(tasks)
        self._compiled: list[Any] = []
        self._measurement = Measurement([*self.by_name, *self.terms])
        if options:
            self.train_with(**options)

    @cached_property
    def by_name(self) -> dict[str, Task]:
        """The tasks that predict a target, by name."""
        return {name: task for name, task in self.tasks.items() if isinstance(task, Task)}

    @cached_property
    def terms(self) -> dict[str, Term]:
        """The tasks that are a loss of anything else that the model computes, by name."""
        return {name: task for name, task in self.tasks.items() if isinstance(task, Term)}

    def modules_to_shard(self) -> list[nn.Module]:
        """Return the trunk and the child modules of the tasks, such as heads."""
        return [self.trunk, *(part for task in self.tasks.values() for part in task.children())]

    @cached_property
    def derivatives(self) -> bool:
        """Whether a loss needs derivatives with respect to the inputs, which then require gradients."""
        return any(takes_derivatives(task) for task in self.tasks.values())

    def compile_trunk(self) -> None:
        """Compile the trunk by ``torch.compile``, without renaming its parameters."""
        keep_buffers_of_backward()  # there is one backward pass per row
        # In a list, so that it is not a submodule; Module.compile() has no effect on a bare nn.Sequential.
        self._compiled = [torch.compile(self.trunk)]

    def see(self, batch: Batch) -> Seen:
        """Run the trunk on a batch; the heads run when their predictions are accessed."""
        trunk = self._compiled[0] if self._compiled else self.trunk
        given = batch
        if self.derivatives:
            keys = [self.inputs] if isinstance(self.inputs, str) else self.inputs
            given = {**batch, **{key: with_gradients(batch[key]) for key in keys}}
        output = call_with_inputs(trunk, given, self.inputs)
        return Seen(batch, inputs_of(given, self.inputs), output, self.by_name, int(self.examples(batch)))

    def term(self, name: str, seen: Seen) -> tuple[Tensor, float | Tensor | None]:
        """Return the mean loss of a term, a scalar, and its count; ``None`` for the number of examples."""
        with naming(name):
            return self.terms[name](seen)

    def penalty(self, name: str) -> Tensor:
        """Return the loss of a penalty, a scalar."""
        task = self.tasks[name]
        assert isinstance(task, Penalty)
        with naming(name):
            return task(self.named_parameters())

    def forward(self, batch: Batch) -> list[Outcome]:
        """Return the outcome of each task that predicts: loss, prediction and target."""
        with self._graph():
            return list(self.see(batch).outcomes().values())

    def losses(self, batch: Batch) -> dict[str, LossAndCount]:
        """Return the mean loss of each task, including terms and penalties, with its count if that is needed."""
        seen = self.see(batch)
        off = self.off if self._off else frozenset()
        outcomes = seen.outcomes(off)
        # A single batch needs no count.
        whole = self.window == 1 and self.processes == 1 and self._rows == "task"
        losses: dict[str, LossAndCount] = {}
        for name, task in self.tasks.items():
            if name in off:
                continue
            if isinstance(task, Penalty):
                losses[name] = self.penalty(name)
            elif isinstance(task, Term):
                loss, count = self.term(name, seen)
                losses[name] = loss if count is None else (loss, count)
            elif (whole and not task.missing) or task.counts_examples:
                losses[name] = outcomes[name].loss
            else:
                losses[name] = (outcomes[name].loss, outcomes[name].count)
        return losses

    def losses_by_part(self, batch: Batch, rows: Rows) -> dict[str, LossAndCount]:
        """Return losses of halves, ``[2]``, or of examples, ``[batch]``.

        One forward pass suffices, except for halves with a term, which may depend on the whole batch: then each half
        has its own.
        """
        if rows == "example":
            return self._losses_of_examples(self.see(batch))
        if self.terms:
            return dict(super().losses_by_part(batch, rows))
        seen = self.see(batch)
        losses: dict[str, LossAndCount] = {}
        for name in self.names:
            if name in self.off:
                continue
            if name not in self.by_name:
                losses[name] = (self.penalty(name).expand(2), torch.ones(2))
                continue
            prediction = seen.predictions[name]
            with naming(name):
                by_half = self.by_name[name].by_half(prediction, batch)
            losses[name] = stacked(*((half.loss, half.count) for half in by_half))
        return losses

    def _losses_of_examples(self, seen: Seen) -> dict[str, LossAndCount]:
        if any(isinstance(task, Penalty) for task in self.tasks.values()):
            raise ValueError("a penalty has no loss per example, but the weighting has one row per example.")
        losses: dict[str, LossAndCount] = {}
        for name in self.names:
            with naming(name):
                losses[name] = (
                    self.terms[name].each(seen)
                    if name in self.terms
                    else self.by_name[name].each(seen.predictions[name], seen.batch)
                )
        return losses

    def _graph(self) -> AbstractContextManager[object]:
        """Return the context of losses in evaluation: with a graph if one needs derivatives."""
        return torch.enable_grad() if self.derivatives else nullcontext()

    def examples(self, batch: Batch) -> float:
        """Return the number of examples in a batch: the length of the first target, since inputs may be any object."""
        target = next((batch[task.target] for task in self.by_name.values() if task.target in batch), None)
        return float(len(target)) if isinstance(target, Tensor) else super().examples(batch)

    @property
    def labels_can_be_missing(self) -> bool:
        """Whether a task can be absent from a step."""
        return any(task.missing for task in (*self.by_name.values(), *self.terms.values()))

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Return each task's prediction as its metrics receive it; the batch needs no labels."""
        with self._graph():
            seen = self.see(batch)
            return {
                name: in_units(task.transform, seen.predictions[name]).detach()
                for name, task in self.by_name.items()
            }

    def add_measured(self, batch: Batch) -> None:
        """Add a batch to the tasks' losses and metrics."""
        with self._graph():
            seen = self.see(batch)
            outcomes = seen.outcomes()
            terms = [self.term(name, seen) for name in self.terms]
        examples = float(seen.examples)
        others = [(loss, examples if count is None else count) for loss, count in terms]
        self._measurement.update(self.by_name, outcomes.values(), others)

    def measured(self) -> TaskMetrics:
        """Return losses and metrics since the last call, over all processes."""
        metrics = self._measurement.finish(self.by_name, self.terms)
        penalties = [name for name, task in self.tasks.items() if isinstance(task, Penalty)]
        return {**metrics} | {(name, "loss"): float(self.penalty(name)) for name in penalties}

    def keys_of(self, names: Iterable[str]) -> set[str]:
        """Return the keys that validation logs if these tasks have labels."""
        own = {name: self.by_name[name].metrics if name in self.by_name else () for name in names}
        return val_keys((name, metric) for name in own for metric in ("loss", *own[name]))

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """Return whether higher values of a metric are better; ``None`` if the metric does not define it."""
        return False if metric == "loss" else self.by_name[task].metrics[metric].higher_is_better


def inputs_of(batch: Batch, keys: str | Sequence[str]) -> Any:
    """Return the trunk's inputs: the value of one key, or a dict of several; ``KeyError`` if the batch lacks one."""
    return batch[keys] if isinstance(keys, str) else {key: batch[key] for key in keys}


def call_with_inputs(trunk: Any, batch: Batch, inputs: str | Sequence[str]) -> Any:
    """Call the trunk with its inputs in a batch.

    Several keys are passed as keyword arguments. The value of one key is passed as the only argument, except a mapping
    whose keys the trunk accepts as keyword arguments. Raises ``KeyError`` if the batch lacks a key.
    """
    given = inputs_of(batch, inputs)
    if not isinstance(inputs, str) or (isinstance(given, Mapping) and _takes(trunk, given)):
        return trunk(**given)
    return trunk(given)


def _takes(trunk: Any, keywords: Mapping[str, Any]) -> bool:
    module = getattr(trunk, "_orig_mod", trunk)  # the original of a compiled module
    try:
        signature(module.forward).bind(**keywords)
    except TypeError:
        return False
    return True


def takes_derivatives(task: object) -> bool:
    """Return whether a task's loss needs derivatives with respect to the inputs."""
    part = task.prediction if isinstance(task, Task) else task
    return bool(getattr(part, "derivatives", False))
