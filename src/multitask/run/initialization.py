"""Initial values, the widths of lazy layers, and what is fitted to the training targets."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from multitask.data.base import DataModule, Split
from multitask.data.loading import derived_seed
from multitask.penalty import Penalty
from multitask.run.errors import ConfigError
from multitask.run.label_checks import check_metrics, check_splits
from multitask.task import Batch, Task, split_features


def seeded(seed: int, name: str, make: Callable[[], Any]) -> Any:
    """Call ``make`` with random numbers that depend on seed and name alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("initial", name, seed))
        return make()


def fit_targets(tasks: Mapping[str, Task], data: DataModule) -> None:
    """Show the training targets once to what is fitted to them: scalings, class weights.

    Raises:
        ConfigError: If there is no training split, or its targets cannot be fitted.
    """
    wanting = {name: task for name, task in tasks.items() if task.fitted}
    if not wanting:
        return
    if "train" not in data.splits:
        raise ConfigError(
            f"tasks.{next(iter(wanting))} is fitted to the training split, and the data has none."
        )
    for batch in data.loader("train"):
        for name, task in wanting.items():
            if task.target not in batch:
                raise ConfigError(
                    f"tasks.{name}.target={task.target} is not in the data; it has {', '.join(batch)}."
                )
            task.observe(batch)
    for name, task in wanting.items():
        for part in task.fitted:
            try:
                part.finish()
            except ValueError as error:
                raise ConfigError(f"tasks.{name}: {error}.") from error


@torch.no_grad()
def initialize(
    trunk: nn.Module, tasks: Mapping[str, Task], batch: Batch, seed: int, splits: Mapping[str, Split]
) -> None:
    """Run one small batch through everything: lazy layers take their widths, misfits are found.

    Raises:
        ConfigError: If trunk, head, loss or a metric cannot take the data, naming the part.
    """
    # From all over the batch: its beginning may be of one source, labelled for one task.
    count = len(batch["inputs"])
    picked = torch.linspace(0, count - 1, min(8, count)).long()
    few: Batch = {name: values[picked] for name, values in batch.items()}
    for part in (trunk, *tasks.values()):
        part.eval()
    try:
        features = seeded(seed, "trunk", lambda: trunk(few["inputs"]))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"trunk cannot take inputs of shape {list(few['inputs'].shape[1:])}: {error}"
        ) from error
    for (name, task), of_task in zip(tasks.items(), split_features(features, list(tasks)), strict=True):
        if task.target not in few:
            raise ConfigError(
                f"tasks.{name}.target={task.target} is not in the data; it has {', '.join(k for k in few)}."
            )
        try:
            prediction = seeded(seed, name, partial(task.head, of_task))
            check_splits(name, task, prediction, splits)
            outcome = task(of_task, few)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"tasks.{name}: {error}") from error
        check_metrics(name, task, outcome)
    for part in (trunk, *tasks.values()):
        part.train()


def check_penalties(trunk: nn.Module, tasks: Mapping[str, Task | Penalty]) -> None:
    """Find a penalty on parameters that are not there.

    Raises:
        ConfigError: If a pattern of a penalty names none.
    """
    named = list(nn.ModuleDict({"trunk": trunk, "tasks": nn.ModuleDict(tasks)}).named_parameters())
    for name, task in tasks.items():
        if isinstance(task, Penalty):
            try:
                task.chosen(named)
            except ValueError as error:
                raise ConfigError(f"tasks.{name}.{error}.") from error
