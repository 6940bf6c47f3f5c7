"""Batches of examples with rare and extreme values, which show what a loss is a mean over."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from multitask.losses.counts import ignored_by, labelled_examples
from multitask.losses.known import redrawn
from multitask.task.task import Batch, Outcome, Task

_SEARCHED = 2**19  # values of a target to search
_CHUNK = 16  # examples in a batch; the first _TELLING have rare or extreme values
_TELLING = 6


def labelled_sample(task: Task, outcome: Outcome, splits: Mapping[str, Batch]) -> Outcome:
    """Return the outcome, or, if none of its examples has a label, one with labels from a split in memory.

    The target may then belong to other examples than the prediction.
    """
    if outcome.known is None or outcome.known.any():
        return outcome
    for arrays in splits.values():
        known = task.labelled(arrays[task.target], arrays)
        chosen = labelled_examples(known).nonzero().flatten()[:64]
        if len(chosen):
            target = _target(task, arrays, chosen, outcome)
            return replace(outcome, target=target, known=known[chosen].view(target.shape))
    return outcome


def examples(
    task: Task, outcome: Outcome, splits: Mapping[str, Batch], batch: Batch
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield predictions and targets of labelled examples; the two parts of each batch differ in any possible count.

    The examples of the outcome come first, with distinct classes, some of them set to the index that the loss
    ignores. For numeric targets, examples of the splits in memory follow, or else of the batch: those with the most
    and least frequent values, the extremes and the value nearest to zero, since a loss may ignore one of them.
    """
    few = _few(task, outcome)
    if few is not None:
        yield few
    numeric = outcome.target.is_floating_point() or task.loss_checks_shapes
    if numeric and len(outcome.prediction) == len(outcome.target):
        for pool in splits.values() or [batch]:
            yield from _of_pool(task, outcome, pool)


def _few(task: Task, outcome: Outcome) -> tuple[Tensor, Tensor] | None:
    prediction, target, known = outcome.prediction, outcome.target, outcome.known
    if known is not None and not known.any():
        return None
    if task.loss_checks_shapes:
        if known is not None:
            rows = known.flatten(1).all(1) if known.ndim > 1 else known
            prediction, target = prediction[rows[: len(prediction)]], target[rows]
        return (prediction, target) if len(target) > 1 else None
    if known is not None or len(target) < 2:
        prediction, target = redrawn(prediction, target, known)
    if target.is_floating_point():
        return prediction, target
    classes = torch.arange(target.numel(), device=target.device).view_as(target) % prediction.shape[1]
    target = classes.flatten().sort().values.view_as(target)
    ignored = ignored_by(task.loss)
    if ignored is not None and len(target) > 3:
        target.view(-1)[: max(1, target.numel() // 8)] = ignored
    return prediction, target


def _of_pool(task: Task, outcome: Outcome, pool: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a split's labelled examples, each beginning with rare or extreme ones."""
    values = pool[task.target]
    known = task.labelled(values, pool) if task.missing else torch.ones_like(values, dtype=torch.bool)
    if not task.missing or task.loss_checks_shapes:
        usable = known.flatten(1).all(1) if known.ndim > 1 else known
    else:
        usable = labelled_examples(known)
    rows = usable.nonzero().flatten()
    if not len(rows):
        return
    most = max(_CHUNK, _SEARCHED // max(1, values[:1].numel()))
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), most)).long()]
    telling = rows[_telling(values[rows], known[rows])]
    others = rows[torch.linspace(0, len(rows) - 1, _CHUNK - _TELLING).long()]
    # Twice, with other predictions: two parts can have close means by chance.
    for some, rest in product(telling.split(_TELLING), (others, others.roll(5))):
        chosen = torch.cat([some, rest.repeat(2)[: _CHUNK - len(some)]])
        prediction = outcome.prediction[torch.arange(_CHUNK) % len(outcome.prediction)]
        target = _target(task, pool, chosen, outcome)
        labelled = known[chosen].view(target.shape)
        if not labelled.all():
            target = target.where(labelled, redrawn(prediction, target, labelled, _CHUNK)[1])
        yield prediction, target


def _telling(values: Tensor, known: Tensor) -> Tensor:
    """Return the examples with a frequent, rare or extreme value, the value nearest to zero, or NaN."""
    each = values[:1].numel()
    places = (known & ~values.isnan()).flatten().nonzero().flatten()
    flat = values.flatten()[places].double()
    marks = values.isnan().reshape(len(values), -1).any(1).nonzero().flatten()[:1]
    if not len(flat):
        return marks
    unique, place, counts = flat.unique(return_inverse=True, return_counts=True)
    first = torch.zeros_like(unique, dtype=torch.long).scatter(0, place.flip(0), places.flip(0))
    by_count = counts.argsort(stable=True)
    often, seldom = by_count.flip(0)[:32], by_count[:32]
    extreme = torch.tensor([0, len(unique) - 1, int(unique.abs().argmin())], device=unique.device)
    chosen = [extreme, often[counts[often] > 1], seldom[counts[seldom] < counts.max()]]
    return torch.cat([first[torch.cat(chosen)] // each, marks]).unique()


def _target(task: Task, pool: Batch, rows: Tensor, outcome: Outcome) -> Tensor:
    """Return the transformed targets of some examples, in the shape and type of the outcome's."""
    target = task.transform(pool[task.target][rows]).view(len(rows), *outcome.target.shape[1:])
    return target.to(outcome.target.dtype)
