"""Refuses losses that are not the mean that the config declares, by computing a batch whole and in parts."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig
from torch import Tensor

from multitask.data.base import Split
from multitask.errors import ConfigError, on_one_line
from multitask.losses.counts import Count, count_of, has_count, labelled_examples, weighs_classes
from multitask.losses.known import loss_over_known, redrawn
from multitask.metrics.known import OfKnown
from multitask.module import AnyTask
from multitask.run.devices import several_processes
from multitask.run.loss_examples import examples
from multitask.task.task import Batch, Outcome, Task
from multitask.weighting.base import Combiner, JacobianMethod

_MEANINGS = {
    "examples": "an unweighted mean over examples",
    "weights": "a mean weighted by class",
    "batch": "one number for each batch, averaged over micro-batches, processes and evaluation batches",
}


def check_loss(
    name: str, task: Task, outcome: Outcome, splits: Mapping[str, Split | None], batch: Batch
) -> None:
    """Check that a loss is one number, and that the loss of a batch is the weighted mean of those of its parts.

    Args:
        name: The task's name.
        task: The task.
        outcome: Its outcome on a few examples.
        splits: The data's splits; those in memory are searched for values that a loss may leave out.
        batch: A batch to search if no split is in memory.

    Raises:
        ConfigError: If either fails: accumulation, several processes and batched evaluation would each change the
            loss.
    """
    _check_number(name, task, outcome)
    if task.counts_by != "batch":
        for prediction, target in examples(task, outcome, splits, batch):
            _check_parts(name, task, prediction, target)


def _check_parts(name: str, task: Task, prediction: Tensor, target: Tensor) -> None:
    """Refuse a loss if the loss of a batch is not the weighted mean of those of its two parts."""
    loss = deepcopy(task.loss)
    try:
        pair = _whole_and_parts(loss, task.counts_by, prediction, target)
        if pair is None or close(*pair):
            return
        said = f"a batch gives {pair[0]:.6g} and its two parts together {pair[1]:.6g}"
    except ValueError as error:
        said = f"it fails on a part of a batch ({on_one_line(error)})"
    if getattr(loss, "reduction", None) == "sum":
        raise ConfigError(
            f"tasks.{name}.loss.reduction=sum makes the loss depend on the batch size, and a task's loss is the mean "
            f"over a batch; set tasks.{name}.loss.reduction=mean."
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
        "the number of elements in its mean."
    )


def check_partly(
    name: str, task: Task, outcome: Outcome, batch: Batch, splits: Mapping[str, Split | None]
) -> None:
    """Check that loss and metrics can skip single values of partly labelled examples.

    Args:
        name: The task's name.
        task: The task.
        outcome: Its outcome on ``batch``.
        batch: A few examples.
        splits: The data's splits; those in memory are searched for such examples.

    Raises:
        ConfigError: If there are such examples and a loss or metric needs whole examples.
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
    where = f"{rows} examples of the {split} split have labels for only a part of the target '{task.target}'"
    way_out = f"mark them as entirely missing (mask/{task.target}), or choose another"
    if reason is not None:
        raise ConfigError(f"tasks.{name}.loss: {where}, and {reason}; {way_out} loss.")
    for key, metric in task.metrics.items(keep_base=True, copy_state=False):
        if isinstance(metric, OfKnown) and metric.way == "rows":
            raise ConfigError(
                f"tasks.{name}.metrics.{key}: {where}, and {_called(metric.metric)} cannot skip single values: it "
                f"neither pools all values, nor averages over columns, nor has an ignore_index; {way_out} metric."
            )


def check_batch_losses(config: DictConfig, tasks: Mapping[str, AnyTask], weighting: Combiner) -> None:
    """Warn if losses with ``count=batch`` are averaged over micro-batches or processes.

    Raises:
        ConfigError: If the weighting needs a loss for each example.
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
            f"{said}: the loss of a step is the mean of the losses of each {where}, which differs from the "
            "loss of one batch with all their examples."
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
    """Return the number of partly labelled examples."""
    known = task.labelled(batch[task.target], batch)
    return int((labelled_examples(known) & labelled_examples(~known)).sum())


def _whole_and_parts(
    loss: Callable[[Tensor, Tensor], Tensor], how: Count | None, prediction: Tensor, target: Tensor
) -> tuple[float, float] | None:
    """Return the loss of a batch and the weighted mean of those of its two parts; ``None`` if it is not finite."""

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
    """Call ``found`` with noisy predictions, since an untrained head's may all be equal; then with the originals.

    Returns:
        The first result whose first number is finite; ``None`` if there is none.

    Raises:
        ValueError: If both calls fail.
    """
    generator = torch.Generator().manual_seed(0)
    # Noise grows along the batch, so that the two parts have different means: it exposes a function of a mean.
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
    """Return whether two losses are equal up to rounding."""
    return abs(first - second) <= 1e-6 + 1e-4 * max(abs(first), abs(second))


def _fitting(
    task: Task, loss: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor
) -> Count:
    """Return the value of ``count`` with which the loss of a batch is the weighted mean of its parts' losses."""
    choices: tuple[Count, ...] = ("examples", "weights")
    for how in choices:
        if how == task.counts_by or (how == "weights" and getattr(loss, "weight", None) is None):
            continue
        try:
            pair = _whole_and_parts(loss, how, prediction, target)
        except ValueError:
            continue
        if pair is not None and close(*pair):
            return how
    return "batch"


def _loss_refuses(task: Task, outcome: Outcome) -> str | None:
    """Return why a loss cannot skip single values; ``None`` if it can."""
    if task.loss_checks_shapes:
        return "a loss with loss_checks_shapes=true takes whole examples"
    known = outcome.known
    if known is not None and not known.any():
        return None
    prediction, target = redrawn(outcome.prediction, outcome.target, known)
    generator = torch.Generator().manual_seed(1)
    some = (torch.rand(target.shape, generator=generator) < 0.7).to(target.device)
    loss = deepcopy(task.loss)
    unlike = f"{_called(loss)} over single labelled values differs from the loss over whole examples"

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
