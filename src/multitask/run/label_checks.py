"""Refuses labels that do not suit the head or loss, metrics that fail, and units that differ, before any step."""

import warnings
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from multitask.errors import ConfigError, on_one_line
from multitask.losses.counts import has_count, ignored_by, labelled_examples
from multitask.losses.known import redrawn
from multitask.metrics.known import OfKnown
from multitask.task.derived import PredictionOf
from multitask.task.targets import Standardized
from multitask.task.task import Batch, Outcome, Task


def check_splits(name: str, task: Task, prediction: Tensor, splits: Mapping[str, Batch]) -> None:
    """Check all targets of a task, and refuse a training split without a label."""
    for split, arrays in splits.items():
        check_labels(name, task, prediction, arrays, split)
        if split == "train" and not task.count(arrays):
            raise ConfigError(
                f"tasks.{name}: the target '{task.target}' has no label in the train split; "
                f"ignore_index={task.ignore_index} and NaN mark missing labels."
            )


def check_labels(name: str, task: Task, prediction: Tensor, batch: Batch, split: str) -> None:
    """Refuse classes without a score, targets of a binary loss outside [0, 1], infinite values, and unexpected NaN.

    Of the prediction, only the shape matters; it can be that of any batch.
    """
    target = task.transform(batch[task.target])
    where = f"tasks.{name}: the target '{task.target}'"
    known = task.labelled(batch[task.target], batch) if task.missing else None
    if target.is_floating_point():
        _check_numbers(where, task, target, known, split)
        return
    if task.loss_checks_shapes:
        return
    given = list(prediction.shape)
    if len(given) < 2 or given[2:] != list(target.shape[1:]) or given[1] == 1:
        raise ConfigError(
            f"{where} holds integers {['batch', *target.shape[1:]]} and the head gives {['batch', *given[1:]]}; "
            "classes need one score each, 0 and 1 need transform._target_=multitask.targets.Binary, "
            "regression needs floats, and a loss that takes both as they are needs "
            f"tasks.{name}.loss_checks_shapes=true."
        )
    outside = (target < 0) | (target >= given[1])
    if (own := ignored_by(task.loss)) is not None:
        outside &= target != own
    if known is not None:
        outside &= known
    if outside.any():
        wrong = int(target[outside][0])
        raise ConfigError(
            f"{where} has the class {wrong} in the {split} split and the head gives scores for 0 to {given[1] - 1}; "
            f"widen tasks.{name}.head, set missing=true and ignore_index={wrong} if it marks a missing label, or set "
            f"tasks.{name}.loss_checks_shapes=true if these are not classes and the loss takes them as they are."
        )


def _check_numbers(where: str, task: Task, target: Tensor, known: Tensor | None, split: str) -> None:
    missing = target.isnan() if known is None else target.isnan() & known
    if missing.any() and not has_count(task.loss):
        raise ConfigError(
            f"{where} has {int(missing.sum())} NaN among the {target.numel()} values of the {split} split; "
            "set missing=true to leave them out (on the command line +tasks.<task>.missing=true)."
        )
    values = target if known is None else target[known]
    if values.isinf().any():
        raise ConfigError(
            f"{where} has infinite values in the {split} split; fix the data, or replace them by NaN."
        )
    if isinstance(task.loss, nn.BCEWithLogitsLoss | nn.BCELoss):
        outside = values[(values < 0) | (values > 1)]
        if outside.numel():
            raise ConfigError(
                f"{where} has {outside[0].item():g} in the {split} split and {type(task.loss).__name__} needs 0 and 1; "
                "recode it, or set missing=true and ignore_index if it marks a missing label."
            )


def check_metrics(name: str, task: Task, outcome: Outcome) -> None:
    """Compute every metric of a task once, on a copy."""
    shown, known = task.shown(outcome), outcome.known
    labelled = len(outcome.target) if known is None else int(labelled_examples(known).sum())
    if not labelled:
        return
    for metric in task.metrics.values(copy_state=False):
        if isinstance(metric, OfKnown):
            metric.settle(*shown)
    if labelled > 1 and len(shown[0]) == len(shown[1]):  # correlations, for example, need two
        metric_values(name, task, *shown)
    elif not task.loss_checks_shapes:
        metric_values(name, task, *redrawn(*shown))


def metric_values(
    name: str, task: Task, prediction: Tensor, target: Tensor, *known: Tensor | None
) -> dict[str, float]:
    """Return the values of a task's metrics, computed on copies; refuse metrics that fail or do not give one number."""
    return {
        key: _value(f"tasks.{name}.metrics.{key}", deepcopy(metric), prediction, target, *known)
        for key, metric in task.metrics.items(keep_base=True, copy_state=False)
    }


def _value(key: str, metric: Metric, prediction: Tensor, target: Tensor, *known: Tensor | None) -> float:
    try:
        with warnings.catch_warnings():
            # So few examples cause warnings; validation repeats those that matter.
            warnings.simplefilter("ignore")
            metric.update(prediction, target, *known)
            value = metric.compute()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"{key} cannot take predictions {list(prediction.shape)} ({dtype_of(prediction)}) with targets "
            f"{list(target.shape)} ({dtype_of(target)}): {on_one_line(error)}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{key} gives {shape} and must give one number; choose an average.")
    return float(value)


def dtype_of(values: Tensor) -> str:
    """Return the name of the dtype, without ``torch.``."""
    return str(values.dtype).removeprefix("torch.")


def labelled_share(task: Task, batch: Batch) -> float | None:
    """Return the labelled share of a target; ``None`` if the loss counts by class weights."""
    target = batch[task.target]
    if task.missing:
        return float(task.labelled(target, batch).float().mean())
    if not has_count(task.loss):
        return 1.0
    if getattr(task.loss, "weight", None) is not None:
        return None
    places = target[:, :1] if target.is_floating_point() and target.ndim > 2 else target
    return float(torch.as_tensor(task.count(batch))) / places.numel()


def check_units(name: str, task: Task, tasks: Mapping[str, Task]) -> None:
    """Refuse a task that uses the prediction of another one of ``tasks`` whose target is in other units."""
    if not isinstance(task.prediction, PredictionOf) or task.prediction.task not in tasks:
        return
    other = tasks[task.prediction.task]
    own, its = _units(task), _units(other)
    if own is its is None:
        return
    if own is not None and its is not None and own.shape == its.shape:
        apart = (own - its).abs()
        if (apart <= 1e-6 * torch.maximum(own[1], its[1])).all():
            return
    raise ConfigError(
        f"tasks.{name}: its prediction is that of tasks.{task.prediction.task}, in {_in_words(other, its)}, and its "
        f"loss uses {_in_words(task, own)}; give both the same target and transform, or leave transform out of both."
    )


def _units(task: Task) -> Tensor | None:
    """Return mean and deviation of each column, ``[2, columns]``; ``None`` if the target is not standardized."""
    if not isinstance(task.transform, Standardized):
        return None
    return torch.stack([task.transform.mean, task.transform.std])


def _in_words(task: Task, units: Tensor | None) -> str:
    if units is None:
        return f"the units of the target '{task.target}'"
    mean, std = (", ".join(f"{value:.4g}" for value in row[:3].tolist()) for row in units)
    return f"deviations of the target '{task.target}' (mean {mean}, deviation {std})"
