"""Losses and metrics of a split, accumulated over its batches."""

from collections.abc import Collection, Iterable, Mapping
from math import isnan

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from multitask.lightning.metric_keys import TaskMetrics
from multitask.metrics.precision import Exact, exact
from multitask.task.task import Outcome, Task


class Measurement(nn.Module):
    """The mean loss of each task over the labelled part of a split, and the tasks' metrics.

    ``names`` are those of the tasks that predict, followed by those of the other losses.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._losses = Exact({"losses": _Losses(len(names))})

    def update(
        self,
        tasks: Mapping[str, Task],
        outcomes: Iterable[Outcome],
        others: Iterable[tuple[Tensor, Tensor | float]] = (),
    ) -> None:
        """Add the outcomes of the tasks on a batch, and mean and count of each other loss."""
        for i, (loss, count) in enumerate(others, start=len(tasks)):
            if count:
                self._losses["losses"].update(i, loss.detach(), count)
        for i, (task, outcome) in enumerate(zip(tasks.values(), outcomes, strict=True)):
            if count := outcome.count:
                self._losses["losses"].update(i, outcome.loss.detach(), count)
                task.measure(outcome)

    def finish(self, tasks: Mapping[str, Task], others: Iterable[str] = ()) -> TaskMetrics:
        """Return losses and metrics over all processes, and reset them.

        Tasks without a label in the split are omitted. So is a metric that is NaN although the loss is not, such as a
        correlation of constant predictions. A metric that raises is omitted with a warning.
        """
        metrics: dict[tuple[str, str], float] = {}
        sums, counts = self._losses["losses"].compute().tolist()
        for name, total, count in zip([*tasks, *others], sums, counts, strict=True):
            if count:
                loss = metrics[name, "loss"] = total / count
                for metric, value in _computed(name, tasks[name]).items() if name in tasks else ():
                    if isnan(loss) or not isnan(value):
                        metrics[name, metric] = value
            if name in tasks:
                tasks[name].metrics.reset()
        self._losses.reset()
        return metrics


def _computed(name: str, task: Task) -> dict[str, float]:
    values = {}
    for key, metric in task.metrics.items(keep_base=True, copy_state=False):
        try:
            values[key] = float(metric.compute())
        except (ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
            rank_zero_warn(
                f"tasks.{name}.metrics.{key} cannot be computed from the labels of a split, and is omitted: "
                f"{' '.join(str(error).split()).rstrip('.')}."
            )
    return values


class _Losses(Metric):
    """Sums over a split, ``[2, tasks]``: of a task's mean losses times their counts, and of the counts."""

    full_state_update = False
    sums: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, tasks), dist_reduce_fx="sum")

    def update(self, task: int, loss: Tensor, count: Tensor | float) -> None:
        loss, count = exact(loss), exact(torch.as_tensor(count)).to(self.sums)
        self.sums[:, task] += torch.stack([loss * count, count])

    def compute(self) -> Tensor:
        return self.sums
