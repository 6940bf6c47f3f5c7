"""Initial values, the widths of lazy layers, and what is fitted to the training targets."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from multitask.batches import few_of, picked, tensors_of
from multitask.data.base import Split
from multitask.lightning.probing import unobtrusive
from multitask.module import call_with_inputs
from multitask.penalty import Penalty
from multitask.randomness import derived_seed
from multitask.run.data import Data, batches_in
from multitask.run.errors import ConfigError
from multitask.run.label_checks import check_labels, check_metrics, check_splits
from multitask.run.loss_checks import check_loss, check_partly, labelled_sample
from multitask.task import Batch, Task, split_features


def seeded(seed: int, name: str, make: Callable[[], Any]) -> Any:
    """Call ``make`` with random numbers that depend on seed and name alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("initial", name, seed))
        return make()


def fit_targets(tasks: Mapping[str, Task], data: Data, most: int | None = None) -> None:
    """Show the training targets once to what is fitted to them: scalings, class weights.

    Args:
        tasks: The tasks that have a head.
        data: The data.
        most: How many batches of a stream without a length to take; ``None`` for all, where it has an end.

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
    loader = data.loader("train")
    for batch in loader if batches_in(loader) is not None else islice(loader, most):
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


def batches_of_run(config: DictConfig) -> int | None:
    """Return how many training batches an epoch, or a run without epochs, takes of a stream; ``None`` for all."""
    trainer = config.trainer
    if isinstance(trainer.limit_train_batches, int):
        return int(trainer.limit_train_batches)
    if trainer.max_steps > 0 and trainer.max_epochs in (-1, None):
        return int(trainer.max_steps * trainer.accumulate_grad_batches)
    return None  # the run ends only if an epoch does


@torch.no_grad()
def initialize(
    trunk: nn.Module,
    tasks: Mapping[str, Task],
    batch: Batch,
    seed: int,
    splits: Mapping[str, Split | None],
    inputs: str | Sequence[str] = "inputs",
) -> None:
    """Run one small batch through everything: lazy layers take their widths, misfits are found.

    Args:
        trunk: The trunk.
        tasks: The tasks that have a head.
        batch: A batch.
        seed: The run's.
        splits: The data's, of which those in memory are checked whole.
        inputs: As for :class:`~multitask.module.MultiTaskModule`.

    Raises:
        ConfigError: If trunk, head, loss or a metric cannot take the data, naming the part.
    """
    few = few_of(batch)
    with unobtrusive(trunk, *tasks.values()):
        _initialize(trunk, tasks, few, seed, splits, inputs)


def _initialize(
    trunk: nn.Module,
    tasks: Mapping[str, Task],
    few: Batch,
    seed: int,
    splits: Mapping[str, Split | None],
    inputs: str | Sequence[str],
) -> None:
    try:
        features = seeded(seed, "trunk", lambda: call_with_inputs(trunk, few, inputs))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise ConfigError(_misfit(_given(few, inputs), error)) from error
    check_inputs(trunk, splits, inputs)
    for (name, task), of_task in zip(tasks.items(), split_features(features, list(tasks)), strict=True):
        if task.target not in few:
            raise ConfigError(
                f"tasks.{name}.target={task.target} is not in the data; it has {', '.join(k for k in few)}."
            )
        if not task.missing and f"mask/{task.target}" in few:
            raise ConfigError(
                f"tasks.{name}: the data has mask/{task.target}, which says what of the target is labelled; set "
                f"tasks.{name}.missing=true, or take the mask out."
            )
        try:
            task.copies_features = _changes(task.head, of_task, seed, name)
            prediction = seeded(seed, name, partial(task.head, of_task.clone()))
            check_splits(name, task, prediction, splits)
            check_labels(
                name, task, prediction, few, next(iter(splits)) if "train" not in splits else "train"
            )
            outcome = task(of_task, few)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ConfigError(f"tasks.{name}: {error}{_derivatives(error)}") from error
        outcome = labelled_sample(task, outcome, splits)
        check_loss(name, task, outcome)
        check_metrics(name, task, outcome)
        check_partly(name, task, outcome, few, splits)


def _changes(head: nn.Module, features: Tensor, seed: int, name: str) -> bool:
    """Return whether a head changes the features in place, before other heads have seen them."""
    given = features.clone()
    before = given._version
    seeded(seed, name, partial(head, given))
    return given._version != before


def _given(batch: Batch, inputs: str | Sequence[str]) -> Any:
    return batch[inputs] if isinstance(inputs, str) else {key: batch[key] for key in inputs}


def _misfit(inputs: Any, error: Exception) -> str:
    reason = f"{' '.join(str(error).split())}{_derivatives(error)}"
    if not isinstance(inputs, Tensor):
        keys = f" of {', '.join(map(str, inputs))}" if isinstance(inputs, Mapping) else ""
        return f"trunk cannot take a {type(inputs).__name__}{keys} for its inputs: {type(error).__name__}: {reason}"
    kind = str(inputs.dtype).removeprefix("torch.")
    hint = "" if inputs.is_floating_point() else "; all layers but embeddings want floats"
    shape = list(inputs.shape[1:])
    return f"trunk cannot take inputs of shape {shape} and type {kind}{hint}: {reason}"


def _derivatives(error: Exception) -> str:
    """Return what to do where a part differentiates its outputs: no graph is kept here, nor in validation."""
    return "; take derivatives inside torch.enable_grad()." if "does not require grad" in str(error) else ""


def check_batch(batch: Any, inputs: str | Sequence[str]) -> None:
    """Refuse batches in which trunk and tasks find nothing by name.

    Raises:
        ConfigError: If a batch is no mapping, or lacks the inputs.
    """
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"data gives a {type(batch).__name__} for a batch, and trunk and heads look for inputs and targets by "
            "name; give each example as a mapping, set data.collate_fn, or take your own model (docs/own_models.md)."
        )
    for key in [inputs] if isinstance(inputs, str) else inputs:
        if key not in batch:
            raise ConfigError(
                f"data has {', '.join(map(str, batch)) or 'nothing'}, and no '{key}'; set model.inputs to the key, or "
                "the keys, of the trunk's inputs."
            )


def check_inputs(
    trunk: nn.Module, splits: Mapping[str, Split | None], inputs: str | Sequence[str] = "inputs"
) -> None:
    """Find inputs in memory that are NaN or infinite, and that the trunk does not deal with by itself.

    Raises:
        ConfigError: Naming the split.
    """
    for split, arrays in splits.items():
        if not isinstance(arrays, Mapping):
            continue
        given = [t for t in tensors_of(_given(arrays, inputs)) if t.is_floating_point()]
        if not given:
            continue
        wrong = torch.stack([~t.flatten(1).isfinite().all(1) for t in given]).any(0)
        if not wrong.any():
            continue
        features = call_with_inputs(trunk, picked(arrays, wrong.nonzero().flatten()[:8]), inputs)
        found = features.values() if isinstance(features, Mapping) else [features]
        if not all(isinstance(one, Tensor) and one.isfinite().all() for one in found):
            raise ConfigError(
                f"data: the inputs of {int(wrong.sum())} of {len(wrong)} examples of the {split} split are NaN or "
                "infinite; fix the data, or leave these examples out."
            )


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
