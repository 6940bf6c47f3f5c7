"""Losses and metrics of a whole split, gathered batch by batch."""

from collections.abc import Iterable, Mapping
from math import isnan

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from multitask.lightning.figures import Figures
from multitask.metrics.precision import Exact, exact
from multitask.task.task import Outcome, Task


class Measurement(nn.Module):
    """The mean loss of each task over what is labelled in a split, beside the tasks' own metrics.

    Args:
        tasks: The names of the tasks that predict, then those of the losses beside them.
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self._losses = Exact({"losses": _Losses(len(list(tasks)))})

    def update(
        self,
        tasks: Mapping[str, Task],
        outcomes: Iterable[Outcome],
        others: Iterable[tuple[Tensor, Tensor | float]] = (),
    ) -> None:
        """Add a batch.

        Args:
            tasks: The tasks that predict.
            outcomes: The outcome of each of them on the batch.
            others: The mean loss of each of the others, and what it is over.
        """
        for i, (loss, count) in enumerate(others, start=len(tasks)):
            if count:
                self._losses["losses"].update(i, loss.detach(), count)
        for i, (task, outcome) in enumerate(zip(tasks.values(), outcomes, strict=True)):
            count = outcome.count
            if count:
                self._losses["losses"].update(i, outcome.loss.detach(), count)
                task.measure(outcome)

    def finish(self, tasks: Mapping[str, Task], others: Iterable[str] = ()) -> Figures:
        """Return the figures of what was added, over all processes, and forget it.

        A task without a label in the split has no figures, and neither has a metric that is NaN where the loss is
        not: a correlation of constant predictions, say. Of a loss that is NaN the metrics stay, as they are. One that
        cannot be computed of what it was shown is left out with a warning, so that the others are not lost with it.
        """
        figures: dict[tuple[str, str], float] = {}
        sums, masses = self._losses["losses"].compute().tolist()
        for name, total, mass in zip([*tasks, *others], sums, masses, strict=True):
            metrics = _computed(name, tasks[name]) if mass and name in tasks else {}
            if mass:
                loss = figures[name, "loss"] = total / mass
                for metric, value in metrics.items():
                    if isnan(loss) or not isnan(value):
                        figures[name, metric] = value
            if name in tasks:
                tasks[name].metrics.reset()
        self._losses.reset()
        return figures


def _computed(name: str, task: Task) -> dict[str, float]:
    found = {}
    for key, metric in task.metrics.items(keep_base=True, copy_state=False):
        try:
            found[key] = float(metric.compute())
        except (ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
            rank_zero_warn(
                f"tasks.{name}.metrics.{key} cannot be computed of the labels that a split has, and is left out: "
                f"{' '.join(str(error).split()).rstrip('.')}."
            )
    return found


class _Losses(Metric):
    """Sums over a split: of each task's loss times what its mean is over, and of what it is over."""

    full_state_update = False
    sums: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, tasks), dist_reduce_fx="sum")

    def update(self, task: int, loss: Tensor, mass: Tensor | float) -> None:
        """Add a task's mean loss over one batch."""
        loss, mass = exact(loss), exact(torch.as_tensor(mass)).to(self.sums)
        self.sums[:, task] += torch.stack([loss * mass, mass])

    def compute(self) -> Tensor:
        """Return both sums, ``[2, tasks]``."""
        return self.sums
