"""Losses and metrics of a whole split, gathered batch by batch."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from multitask.task import Outcome, Task

Figures = dict[tuple[str, str], Tensor]
"""Values by task and metric; ``loss`` is a metric of every task."""


class Measurement(nn.Module):
    """The mean loss of each task over what is labelled in a split, beside the tasks' own metrics.

    Args:
        tasks: The names of the tasks that have a head.
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self._losses = nn.ModuleList(MeanMetric() for _ in tasks)

    def update(self, tasks: Mapping[str, Task], outcomes: Iterable[Outcome]) -> None:
        """Add a batch."""
        for task, mean, outcome in zip(tasks.values(), self._losses, outcomes, strict=True):
            count = outcome.count
            if count:
                assert isinstance(mean, MeanMetric)
                mean.update(outcome.loss.detach(), count)
                task.measure(outcome)

    def finish(self, tasks: Mapping[str, Task]) -> Figures:
        """Return the figures of what was added, over all processes, and forget it."""
        figures: Figures = {}
        for (name, task), mean in zip(tasks.items(), self._losses, strict=True):
            assert isinstance(mean, MeanMetric)
            figures[name, "loss"] = mean.compute()
            mean.reset()
            figures |= {(name, metric): value for metric, value in task.metrics.compute().items()}
            task.metrics.reset()
        return figures


def logged(figures: Figures, prefix: str) -> dict[str, Tensor]:
    """Return ``<prefix>/loss/<task>``, ``<prefix>/<task>/<metric>`` and the means over tasks."""
    found: dict[str, Tensor] = {}
    by_metric: dict[str, list[Tensor]] = {}
    for (task, metric), value in figures.items():
        found[f"{prefix}/loss/{task}" if metric == "loss" else f"{prefix}/{task}/{metric}"] = value
        by_metric.setdefault(metric, []).append(value.float())
    for metric, values in by_metric.items():
        mean = torch.stack(values).mean()
        found[f"{prefix}/loss" if metric == "loss" else f"{prefix}/mean/{metric}"] = mean
    return found
