"""Refuses losses that are not the means they are taken for, found by computing a batch whole and in parts."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig
from torch import Tensor

from multitask.data.base import Split
from multitask.errors import ConfigError
from multitask.losses.counts import Count, count_of, has_count, labelled_examples, weighs_classes
from multitask.losses.known import loss_over_known, redrawn
from multitask.metrics.known import OfKnown
from multitask.module import AnyTask
from multitask.run.devices import several_processes
from multitask.run.loss_examples import examples
from multitask.task.task import Batch, Outcome, Task
from multitask.weighting.base import Combiner, JacobianMethod

_MEANINGS = {
    "examples": "a mean over all examples alike",
    "weights": "a mean weighted by class",
    "batch": "one number for each batch, averaged over micro-batches, processes and evaluation batches",
}


def check_loss(
    name: str, task: Task, outcome: Outcome, splits: Mapping[str, Split | None], batch: Batch
) -> None:
    """Check that a loss is one number, and that two parts of a batch add up to the whole of it.

    Args:
        name: The task's name.
        task: The task.
        outcome: What it makes of a few examples.
        splits: The data's splits; those in memory are searched for values that a loss may leave out.
        batch: A batch, searched where none is in memory.

    Raises:
        ConfigError: If it is not, or they do not: accumulation, processes and evaluation in batches would each
            give another loss.
    """
    _check_number(name, task, outcome)
    if task.counts_by != "batch":
        for prediction, target in examples(task, outcome, splits, batch):
            _check_parts(name, task, prediction, target)


def _check_parts(name: str, task: Task, prediction: Tensor, target: Tensor) -> None:
    """Refuse a loss of which two parts of some examples do not add up to the whole."""
    loss = deepcopy(task.loss)
    try:
        pair = _apart(loss, task.counts_by, prediction, target)
        if pair is None or close(*pair):
            return
        said = f"a batch gives {pair[0]:.6g} and its two parts together {pair[1]:.6g}"
    except ValueError as error:
        said = f"it fails on a part of a batch ({' '.join(str(error).split())})"
    if getattr(loss, "reduction", None) == "sum":
        raise ConfigError(
            f"tasks.{name}.loss.reduction=sum gives another loss for every batch size, and a task's loss is the mean "
            f"of a batch; set tasks.{name}.loss.reduction=mean."
        )
    taken_for = (
        "what its method count(target) returns"
        if task.counts_by is None and has_count(loss)
        else "its class weights"
        if weighs_classes(loss, task.counts_by) and getattr(loss, "weight", None) is not None
        else "its labelled values"
    )
    fitting = _fitting(task, loss, prediction, target)
    raise ConfigError(
        f"tasks.{name}.loss: {_called(loss)} is not the mean over {taken_for} that it is taken for: {said}; set "
        f"tasks.{name}.count={fitting} ({_MEANINGS[fitting]}), or give the loss a method count(target) that returns "
        "what its mean is over."
    )


def check_partly(
    name: str, task: Task, outcome: Outcome, batch: Batch, splits: Mapping[str, Split | None]
) -> None:
    """Check that loss and metrics can leave out single values of rows that are labelled in part.

    Args:
        name: The task's name.
        task: The task.
        outcome: Its outcome on ``batch``.
        batch: A few examples.
        splits: The data's splits; those in memory are searched for such rows.

    Raises:
        ConfigError: If there are such rows and a loss or metric can do with whole rows only.
    """
    if not task.missing:
        return
    found = {
        split: _partly(task, dict(arrays)) for split, arrays in splits.items() if isinstance(arrays, Mapping)
    }
    found = {"training": _partly(task, batch)} | found
    reason = None if outcome.target[0].numel() == 1 else _loss_refuses(task, outcome)
    task.takes_partly_labelled = reason is None
    split, rows = next(((split, rows) for split, rows in found.items() if rows), (None, 0))
    if split is None:
        return
    where = f"{rows} examples of the {split} split miss some of the target '{task.target}' and have the rest"
    way_out = f"mark them as missing altogether (mask/{task.target}), or choose another"
    if reason is not None:
        raise ConfigError(f"tasks.{name}.loss: {where}, and {reason}; {way_out} loss.")
    for key, metric in task.metrics.items(keep_base=True, copy_state=False):
        if isinstance(metric, OfKnown) and metric.way == "rows":
            raise ConfigError(
                f"tasks.{name}.metrics.{key}: {where}, and {_called(metric.metric)} cannot leave single values out: it "
                f"neither pools all values, nor averages over columns, nor ignores what is marked; {way_out} metric."
            )


def check_batch_losses(config: DictConfig, tasks: Mapping[str, AnyTask], weighting: Combiner) -> None:
    """Say what losses that are one number for each batch mean where a step, or a row, has several batches.

    Raises:
        ConfigError: If the weighting wants a loss of each example.
    """
    names = [name for name, task in tasks.items() if getattr(task, "counts_by", None) == "batch"]
    if not names:
        return
    if isinstance(weighting, JacobianMethod) and weighting.rows == "example":
        raise ConfigError(
            f"tasks.{names[0]}.count=batch says that an example alone has no loss, and weighting={config.method} "
            "weighs the losses of examples; choose another weighting."
        )
    parts = int(config.trainer.accumulate_grad_batches) > 1, several_processes(config)
    if any(parts):
        where = " and ".join(
            name for name, there in zip(("micro-batch", "process"), parts, strict=True) if there
        )
        said = ", ".join(f"tasks.{name}.count=batch" for name in names)
        rank_zero_warn(
            f"{said}: the loss of a step is the mean of the losses of each {where}, which is another function than the "
            "loss of one batch of all their examples."
        )


def _check_number(name: str, task: Task, outcome: Outcome) -> None:
    """Refuse a loss that is not a scalar."""
    loss = outcome.loss
    if isinstance(loss, Tensor) and loss.ndim == 0:
        return
    given = list(loss.shape) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    reduction = getattr(task.loss, "reduction", None)
    way_out = (
        f"set tasks.{name}.loss.reduction=mean"
        if isinstance(reduction, str) and reduction != "mean"
        else "return the mean over the batch"
    )
    raise ConfigError(
        f"tasks.{name}.loss: {_called(task.loss)} gives {given} and must give one number; {way_out}."
    )


def _partly(task: Task, batch: Batch) -> int:
    """Return how many examples are labelled in part."""
    known = task.labelled(batch[task.target], batch)
    return int((labelled_examples(known) & labelled_examples(~known)).sum())


def _apart(
    loss: Callable[[Tensor, Tensor], Tensor], how: Count | None, prediction: Tensor, target: Tensor
) -> tuple[float, float] | None:
    """Return the loss of a batch, and that of its two parts by their counts; ``None`` where it is not finite."""

    def both(prediction: Tensor) -> tuple[float, float]:
        cut = max(1, 3 * len(target) // 8)
        parts = [(prediction[:cut], target[:cut]), (prediction[cut:], target[cut:])]
        counts = [float(count_of(loss, how, part)) for _, part in parts]
        joined = sum(
            count * float(loss(*part)) for count, part in zip(counts, parts, strict=True) if count > 0
        )
        return float(loss(prediction, target)), joined / max(sum(counts), torch.finfo(torch.float32).tiny)

    return _first_finite(both, prediction)


def _first_finite(
    found: Callable[[Tensor], tuple[float, float]], prediction: Tensor
) -> tuple[float, float] | None:
    """Call with noisy predictions, since those of an untrained head may be all alike; else with plain ones.

    Returns:
        The findings; ``None`` if the first number is never finite.

    Raises:
        ValueError: If the call fails with either.
    """
    generator = torch.Generator().manual_seed(0)
    # More from example to example: the means of two parts are unlike then, which a function of a mean betrays.
    growing = torch.linspace(0.5, 3, len(prediction)).view(-1, *[1] * (prediction.ndim - 1))
    noise = (growing * torch.randn(prediction.shape, generator=generator)).to(prediction)
    failures = []
    for candidate in (prediction + noise, prediction):
        try:
            pair = found(candidate)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            failures.append(error)
            continue
        if math.isfinite(pair[0]):
            return pair
    if len(failures) == 2:
        raise ValueError(str(failures[1])) from failures[1]
    return None


def close(first: float, second: float) -> bool:
    """Return whether two losses are the same but for rounding."""
    return abs(first - second) <= 1e-6 + 1e-4 * max(abs(first), abs(second))


def _fitting(
    task: Task, loss: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor
) -> Count:
    """Return which count the loss adds up by."""
    choices: tuple[Count, ...] = ("examples", "weights")
    for how in choices:
        if how == task.counts_by or (how == "weights" and getattr(loss, "weight", None) is None):
            continue
        try:
            pair = _apart(loss, how, prediction, target)
        except ValueError:
            continue
        if pair is not None and close(*pair):
            return how
    return "batch"


def _loss_refuses(task: Task, outcome: Outcome) -> str | None:
    """Return why a loss cannot leave single values out; ``None`` where it can."""
    if task.loss_checks_shapes:
        return "a loss that checks shapes itself takes whole examples"
    known = outcome.known
    if known is not None and not known.any():
        return None
    prediction, target = redrawn(outcome.prediction, outcome.target, known)
    generator = torch.Generator().manual_seed(1)
    some = (torch.rand(target.shape, generator=generator) < 0.7).to(target.device)
    loss = deepcopy(task.loss)
    unlike = f"{_called(loss)} over what is labelled is another loss than over whole rows"

    def whole_and_known(prediction: Tensor) -> tuple[float, float]:
        over_all, _ = loss_over_known(loss, task.counts_by, prediction, target, torch.ones_like(some))
        return float(loss(prediction, target)), float(over_all)

    def with_others(prediction: Tensor) -> tuple[float, float]:
        by_value = some if some.shape == prediction.shape else some.unsqueeze(1)
        other = prediction.where(by_value, prediction.roll(1, 0))
        found = [loss_over_known(loss, task.counts_by, p, target, some)[0] for p in (prediction, other)]
        return float(found[0]), float(found[1])

    for found in (whole_and_known, with_others):
        try:
            pair = _first_finite(found, prediction)
        except ValueError:
            return unlike
        if pair is None or not close(*pair):
            return unlike
    return None


def _called(part: object) -> str:
    return getattr(part, "__name__", type(part).__name__)
