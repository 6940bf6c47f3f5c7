"""Refuses losses and terms that are not the mean that the config declares: a batch is computed whole and in parts."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy

import torch
from torch import Tensor

from multitask.data.batches import examples_in, picked
from multitask.errors import ConfigError, on_one_line
from multitask.losses.counts import Count, count_of, has_count, labelled_examples, weighs_classes
from multitask.losses.known import loss_over_known, redrawn
from multitask.metrics.known import OfKnown
from multitask.module import MultiTaskModule
from multitask.run.loss_examples import examples
from multitask.task.task import Batch, Outcome, Task
from multitask.task.terms import Term

Evaluated = tuple[Tensor, float | Tensor | None]
"""A loss and its count, or ``None`` for the number of examples."""

_MEANINGS = {
    "examples": "an unweighted mean over examples",
    "weights": "a mean weighted by class",
    "batch": "one number for each batch, averaged over micro-batches, processes and evaluation batches",
}
# Errors of a loss that cannot take what it is given.
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError)


def check_loss(name: str, task: Task, outcome: Outcome, splits: Mapping[str, Batch], batch: Batch) -> None:
    """Refuse a loss that is not one number, or a batch's loss that is not the weighted mean of those of its parts.

    Accumulation, several processes and batched evaluation would each change such a loss.

    The splits in memory, or ``batch`` if there are none, are searched for values that a loss may leave out.
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
    taken_for = "its labelled values"
    if task.counts_by is None and has_count(loss):
        taken_for = "what its method count(target) returns"
    elif weighs_classes(loss, task.counts_by) and getattr(loss, "weight", None) is not None:
        taken_for = "its class weights"
    fitting = _fitting(task, loss, prediction, target)
    raise ConfigError(
        f"tasks.{name}.loss: {_called(loss)} is not the mean over {taken_for} that it is taken for: {said}; set "
        f"tasks.{name}.count={fitting} ({_MEANINGS[fitting]}), or give the loss a method count(target) that returns "
        "the number of elements in its mean."
    )


def check_term(
    name: str,
    term: Term,
    module: MultiTaskModule,
    batch: Batch,
    drawn: Callable[[Callable[[], Evaluated]], Evaluated] = lambda make: make(),
) -> None:
    """Refuse a term that cannot be computed, or whose loss on a batch is not the weighted mean of those of its parts.

    ``module`` is in evaluation mode. ``drawn`` calls a function in which lazy layers of the loss draw their initial
    values.
    """
    try:
        seen = module.see(batch)
        loss, count = drawn(lambda: term(seen))
    except (*_FAILURES, KeyError, AttributeError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(f"tasks.{name}: {on_one_line(said).rstrip('.')}.") from error
    examples = seen.examples
    if term.derivatives:
        _check_reach(name, loss, module)
    whole = float(loss.detach())
    parted = examples > 1 and examples == examples_in(batch) and (count is None or count)
    if term.counts_by == "batch" or not parted or not math.isfinite(whole):
        return
    sums = counts = 0.0
    for part in _two_parts(examples):
        rows = torch.arange(examples)[part]
        try:
            found, its = module.term(name, module.see(picked(batch, rows)))
        except ValueError as error:
            raise ConfigError(
                f"tasks.{name}.loss fails on a part of a batch ({on_one_line(error)}); set "
                f"tasks.{name}.count=batch if it is no mean over examples."
            ) from error
        size = float(len(rows) if its is None else its)
        if size:
            sums, counts = sums + size * float(found.detach()), counts + size
    joined = sums / counts if counts else math.nan
    if not close(whole, joined):
        raise ConfigError(
            f"tasks.{name}.loss is not the mean over {'its examples' if count is None else 'its count'} that it is "
            f"taken for: a batch gives {whole:.6g} and its two parts together {joined:.6g}; set "
            f"tasks.{name}.count=batch ({_MEANINGS['batch']}), or return (mean, number of elements)."
        )


def _check_reach(name: str, loss: Tensor, module: MultiTaskModule) -> None:
    """Refuse a loss on derivatives that do not depend on the weights, as in piecewise linear networks."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        return
    found = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else [None]
    if not any(gradient is not None and gradient.any() for gradient in found):
        raise ConfigError(
            f"tasks.{name}.loss does not depend on a single trained weight: second derivatives of a network of ReLUs "
            "are zero; use a smooth activation such as Tanh, for example trunk=mlp_smooth."
        )


def check_partly(name: str, task: Task, outcome: Outcome, batch: Batch, splits: Mapping[str, Batch]) -> None:
    """Refuse partly labelled examples if the loss or a metric cannot skip single values."""
    if not task.missing:
        return
    reason = None if outcome.target[0].numel() == 1 else _loss_refuses(task, outcome)
    task.takes_partly_labelled = reason is None
    way_out = f"mark them as entirely missing (mask/{task.target}), or choose another"
    for split, part in {"training": batch, **splits}.items():
        known = task.labelled(part[task.target], part)
        rows = int((labelled_examples(known) & labelled_examples(~known)).sum())
        if not rows:
            continue
        where = (
            f"{rows} examples of the {split} split have labels for only a part of the target '{task.target}'"
        )
        if reason is not None:
            raise ConfigError(f"tasks.{name}.loss: {where}, and {reason}; {way_out} loss.")
        for key, metric in task.metrics.items(keep_base=True, copy_state=False):
            if isinstance(metric, OfKnown) and metric.way == "rows":
                raise ConfigError(
                    f"tasks.{name}.metrics.{key}: {where}, and {_called(metric.metric)} cannot skip single values: it "
                    f"neither pools all values, nor averages over columns, nor has an ignore_index; {way_out} metric."
                )


def _check_number(name: str, task: Task, outcome: Outcome) -> None:
    """Refuse a loss that is not a scalar."""
    loss = outcome.loss
    if isinstance(loss, Tensor) and loss.ndim == 0:
        return
    given = list(loss.shape) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    way_out = "return the mean over the batch"
    if getattr(task.loss, "reduction", "mean") in ("none", "sum"):
        way_out = f"set tasks.{name}.loss.reduction=mean"
    raise ConfigError(
        f"tasks.{name}.loss: {_called(task.loss)} gives {given} and must give one number; {way_out}."
    )


def _whole_and_parts(
    loss: Callable[[Tensor, Tensor], Tensor], how: Count | None, prediction: Tensor, target: Tensor
) -> tuple[float, float] | None:
    """Return the loss of a batch and the weighted mean of those of its two parts; ``None`` if it is not finite."""

    def both(prediction: Tensor) -> tuple[float, float]:
        parts = [(prediction[rows], target[rows]) for rows in _two_parts(len(target))]
        counts = [float(count_of(loss, how, part)) for _, part in parts]
        joined = sum(
            count * float(loss(*part)) for count, part in zip(counts, parts, strict=True) if count > 0
        )
        return float(loss(prediction, target)), joined / max(sum(counts), torch.finfo(torch.float32).tiny)

    return _first_finite(both, prediction)


def _two_parts(examples: int) -> tuple[slice, slice]:
    """Return the rows of two parts of different sizes."""
    cut = max(1, 3 * examples // 8)
    return slice(cut), slice(cut, None)


def _first_finite(
    found: Callable[[Tensor], tuple[float, float]], prediction: Tensor
) -> tuple[float, float] | None:
    """Return the first result of ``found`` with a finite first number, or ``None``; raise if it fails both times.

    It is called with noisy predictions, since an untrained head's may all be equal, and then with the originals.
    """
    generator = torch.Generator().manual_seed(0)
    # Noise grows along the batch, so that the two parts have different means: it exposes a function of a mean.
    growing = torch.linspace(0.5, 3, len(prediction)).view(-1, *[1] * (prediction.ndim - 1))
    noise = (growing * torch.randn(prediction.shape, generator=generator)).to(prediction)
    failures = []
    for candidate in (prediction + noise, prediction):
        try:
            pair = found(candidate)
        except _FAILURES as error:
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
    choices: list[Count] = ["examples"] if getattr(loss, "weight", None) is None else ["examples", "weights"]
    for how in choices:
        with suppress(ValueError):
            pair = _whole_and_parts(loss, how, prediction, target)
            if how != task.counts_by and pair is not None and close(*pair):
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

    try:
        pairs = [_first_finite(found, prediction) for found in (whole_and_known, with_others)]
    except ValueError:
        return unlike
    return None if all(pair is not None and close(*pair) for pair in pairs) else unlike


def _called(part: object) -> str:
    return getattr(part, "__name__", type(part).__name__)
