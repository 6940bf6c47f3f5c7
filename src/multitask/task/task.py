"""One task: its head, its loss, its metrics and where its target lies in the batch."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from multitask.losses.counts import COUNTS, UNSPOKEN, Count, count_of, has_count, ignored_by, weighs_classes
from multitask.losses.known import loss_over_known, over_examples, whole_rows
from multitask.metrics.known import OfKnown
from multitask.metrics.precision import Exact, exact, home
from multitask.task.targets import Fitted, Transform

Batch = Mapping[str, Any]
"""Targets by name, beside the trunk's inputs and whatever else the data gives."""


@dataclass(frozen=True)
class Outcome:
    """The result of a task on one batch."""

    loss: Tensor
    """Weighted mean loss over what is labelled, a scalar; zero where nothing is."""
    weigh: Callable[[], Tensor | float]
    """Returns ``count``: most steps never ask for it."""
    prediction: Tensor
    """The head's output."""
    target: Tensor
    """The target that the loss compares it with."""
    known: Tensor | None
    """Which target values are labelled, in the target's shape; ``None`` where all are."""

    @property
    def count(self) -> Tensor | float:
        """The denominator of the mean: the number of labelled values, or the sum of their class weights."""
        return self.weigh()


class Task(nn.Module):
    """A head on the trunk's features, with a loss and metrics.

    Args:
        head: Features → prediction. Lazy modules find the trunk's output width by themselves.
            ``None`` where ``prediction`` is given.
        loss: ``loss(prediction, target)`` → mean over the batch, a scalar.
        metrics: torchmetrics objects by name.
        target: Key of the target in the batch; ``inputs`` makes it a reconstruction.
        weight: A constant factor of the loss, whatever the combiner does with it afterwards.
        missing: Whether targets can be missing: NaN in a float target, ``ignore_index`` in an
            integer one, ``False`` in ``mask/<target>`` where the batch has it. What is missing
            enters neither loss nor metrics. A loss that was told an ``ignore_index`` says so by itself.
        ignore_index: The integer that marks a missing class; what the loss ignores is missing too.
        transform: What the loss compares in place of the target, and what the metrics see in place of
            the prediction; by default both as they are.
        count: What the loss of a batch is a mean over, for micro-batches, processes and evaluation batches are
            weighted by it. By default what the loss's method ``count(target)`` returns, or what torch's losses
            do, or the number of labelled values without the loss's ``ignore_index``. ``examples``: all labelled
            values alike; ``weights``: each value by its entry in ``loss.weight``; ``batch``: the loss is no mean
            over examples (contrastive pairs, Dice or Cox over a batch), and that of several batches is defined
            as their mean, each weighted by its number of examples.
        loss_checks_shapes: Whether prediction and target may have unlike shapes, and integers be no classes: the
            loss takes both as they are.
        prediction: In place of a head what makes the prediction of all that the model has computed, a
            :class:`multitask.task.seen.Derived`: another task's prediction, or its derivative.

    Raises:
        ValueError: If ``count`` is none of these, or ``weights`` and the loss has no weights; if there are both head
            and prediction, or neither.
    """

    def __init__(
        self,
        head: nn.Module | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        target: str = "target",
        weight: float = 1.0,
        missing: bool = False,
        ignore_index: int = -100,
        transform: Transform | None = None,
        count: Count | None = None,
        loss_checks_shapes: bool = False,
        prediction: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if loss is None or (head is None) == (prediction is None):
            raise ValueError("a task has a loss, and either a head or a prediction.")
        if count is not None and count not in COUNTS:
            raise ValueError(f"tasks.*.count is null, {', '.join(COUNTS)}, not {count!r}.")
        if count == "weights" and getattr(loss, "weight", None) is None:
            raise ValueError(f"tasks.*.count is weights, and {type(loss).__name__} has no attribute weight.")
        self.head = head
        self.prediction = prediction
        self.loss = loss
        self._ignored = None if loss_checks_shapes else ignored_by(loss)
        """The class that the loss leaves out, and metrics with it."""
        if self._ignored is not None and not missing:
            ignore_index = self._ignored
            # Others have a mean of no labels of their own: 0, or one over all examples.
            missing = not has_count(loss) and count in (None, "weights")
        partly = missing or self._ignored is not None
        self.metrics = Exact(
            {name: OfKnown(metric, ignore_index, partly) for name, metric in (metrics or {}).items()}
        )
        self.target = target
        self.weight = weight
        self.missing = missing
        self.ignore_index = ignore_index
        self.transform = Transform() if transform is None else transform
        self.counts_by = count
        self.loss_checks_shapes = loss_checks_shapes
        self._changes_features: dict[bool, bool] = {}
        """Whether the head changes its features in place, in evaluation and in training; learned from a first batch."""
        self.takes_partly_labelled = not loss_checks_shapes
        """Whether the loss can leave single values of an example out; the checks before training may say no."""

    def forward(self, features: Tensor, batch: Batch) -> Outcome:
        """Predict and compare with the batch's target.

        Raises:
            ValueError: If prediction and target cannot be compared, where a loss might broadcast
                them in silence.
        """
        return self.outcome(self.predict(features), batch)

    def predict(self, features: Tensor) -> Tensor:
        """Return the head's prediction; features that others see too stay as they are.

        Raises:
            ValueError: If the head changes its features in place in some batches and not in others.
        """
        assert self.head is not None
        changes = self._changes_features.get(self.training)
        given = features if changes is False else features.clone()
        before = _version(given)
        prediction = self.head(given)
        if changes is None and before is not None:
            self._changes_features[self.training] = before != _version(given)
        elif changes is False and before != _version(given):
            raise ValueError(
                "the head changes its features in place in some batches only; let it work on a copy, or set "
                "inplace=False"
            )
        return prediction

    def outcome(self, prediction: Tensor, batch: Batch) -> Outcome:
        """Compare a prediction for a batch with the batch's target.

        Raises:
            ValueError: As :meth:`forward`.
        """
        return self.compare(prediction, *self._aligned(prediction, batch))

    def count(self, batch: Batch, chosen: Tensor | None = None) -> Tensor | float:
        """Return what this task's mean loss over a batch is over, before any forward pass.

        Args:
            batch: The batch.
            chosen: Which examples to count, shape ``[batch]``; all by default.
        """
        target, known = self._compared(batch)
        if chosen is not None:
            target, known = target[chosen], None if known is None else known[chosen]
        rows = None if known is None else whole_rows(known)
        if rows is not None:
            target, known = target[rows], None
        return count_of(self.loss, self.counts_by, target, known) if len(target) else 0.0

    @property
    def counts_examples(self) -> bool:
        """Whether every batch's mean loss is over the same number of elements per example."""
        ignored = getattr(self.loss, "ignore_index", None)
        weighted = (
            weighs_classes(self.loss, self.counts_by) and getattr(self.loss, "weight", None) is not None
        )
        return (
            self.counts_by == "batch"
            or (
                not (has_count(self.loss) and self.counts_by is None)
                and not weighted
                and ignored in (None, UNSPOKEN)
            )
        ) and not self.missing

    @property
    def fitted(self) -> list[Fitted]:
        """The parts of this task that look at the training targets before the first step."""
        parts: list[object] = [self.transform, self.loss]
        return [part for part in parts if isinstance(part, Fitted)]

    def observe(self, batch: Batch) -> None:
        """Show a batch of training targets to what is fitted to them."""
        target, known = self._compared(batch)
        if isinstance(self.transform, Fitted):
            values = batch[self.target]
            values = values if values.is_floating_point() else values.double()
            self.transform.observe(_only(values, known))
        if isinstance(self.loss, Fitted):
            self.loss.observe(_only(target, known))

    def measure(self, outcome: Outcome) -> None:
        """Show what is labelled of an outcome to the metrics."""
        shown = self.shown(outcome)
        self.metrics.update(*shown, origin=self.transform.origin(shown[1]))

    def shown(self, outcome: Outcome) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None]:
        """Return what the metrics take: prediction and target, and what is labelled where values can be missing.

        Floats that are compared with floats are float64, so that none of a target's digits is lost on the way back
        to its own units. Scores of classes keep their type: there are as many of them as classes.
        """
        prediction, target = outcome.prediction.detach(), outcome.target
        if target.is_floating_point():
            prediction, target = exact(prediction), exact(target)
        else:
            prediction, target = prediction.to(home(prediction.device)), target.to(home(target.device))
        known = None if outcome.known is None else outcome.known.to(target.device)
        if known is None and self._ignored is not None and not target.is_floating_point():
            known = target != self._ignored
        prediction, target = self.transform.shown(prediction, target)
        if known is None:
            return prediction, target
        if known is not None and known.shape != target.shape:  # a transform made one value of several
            rows = whole_rows(known)
            if rows is None:
                raise ValueError(
                    "transform joins values of which some are missing; leave it out, or mark whole rows"
                )
            known = over_examples(rows, target).expand(target.shape)
        return prediction, target, known

    def by_group(self, prediction: Tensor, batch: Batch, groups: Tensor, count: int) -> list[Outcome]:
        """Return one outcome for each group of examples.

        Args:
            prediction: This task's prediction.
            batch: The batch.
            groups: The group of each example, shape ``[batch]``.
            count: How many groups there are.
        """
        target, known = self._aligned(prediction, batch)
        outcomes = []
        for group in range(count):
            chosen = groups == group
            outcomes.append(
                self.compare(prediction[chosen], target[chosen], None if known is None else known[chosen])
            )
        return outcomes

    def each(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each example, shape ``[batch]``."""
        target, _ = self._aligned(prediction, batch)
        weighted = (
            weighs_classes(self.loss, self.counts_by) and getattr(self.loss, "weight", None) is not None
        )
        if getattr(self.loss, "reduction", None) == "mean" and not weighted:
            unreduced = copy(self.loss)
            unreduced.reduction = "none"  # type: ignore[attr-defined]
            values = unreduced(prediction, target)
            return self.weight * (values.flatten(1).mean(1) if values.ndim > 1 else values)
        singles = [(one, its) for one, its in zip(prediction.split(1), target.split(1), strict=True)]
        losses = torch.stack([self.loss(one, its) for one, its in singles])
        if weighted:  # a mean over one example has lost its weight
            counts = torch.stack(
                [torch.as_tensor(count_of(self.loss, self.counts_by, its)) for _, its in singles]
            )
            losses = losses * counts / counts.mean()
        return self.weight * losses

    def _aligned(self, prediction: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the target in the prediction's shape, and which of its values are labelled (``None``: all)."""
        target, known = self._compared(batch, prediction.dtype)
        if target.is_floating_point() and not self.loss_checks_shapes:
            target = _aligned(target, prediction, self.target)
        return target, None if known is None else known.view_as(target)

    def _compared(self, batch: Batch, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
        """Return what the loss compares, and which of its values are labelled (``None``: all).

        Args:
            batch: The batch, whose targets may be float64 to keep their digits on the way through the transform.
            dtype: The predictions'; the loss gets float64 only beside float64.
        """
        target = batch[self.target]
        known = self.labelled(target, batch) if self.missing else None
        target = target if type(self.transform) is Transform else self.transform(target)
        if target.dtype == torch.float64 and dtype != torch.float64:
            target = target.float()
        return target, known

    def labelled(self, target: Tensor, batch: Batch) -> Tensor:
        """Return which values of a target are labelled, in its shape."""
        known = ~target.isnan() if target.is_floating_point() else target != self.ignore_index
        if self._ignored not in (None, self.ignore_index) and not target.is_floating_point():
            known = known & (target != self._ignored)
        mask = batch.get(f"mask/{self.target}")
        if mask is not None:
            if mask.shape != known.shape[: mask.ndim]:
                raise ValueError(
                    f"mask/{self.target} is {list(mask.shape)} and the target '{self.target}' {list(known.shape)}; "
                    "make the mask as large, or one value an example."
                )
            known = known & over_examples(mask, known)
        return known

    def compare(self, prediction: Tensor, target: Tensor, known: Tensor | None) -> Outcome:
        """Return the loss of a prediction.

        Args:
            prediction: As the head gives it.
            target: What the loss compares it with.
            known: Which target values are labelled; ``None`` where all are.
        """
        if known is not None and known.all():
            known = None
        rows = None if known is None else whole_rows(known)
        if known is None or rows is not None:
            of_rows = (prediction, target) if rows is None else (prediction[rows], target[rows])
            if of_rows[1].numel() == 0:
                return Outcome(of_rows[0].sum() * 0.0, lambda: 0.0, prediction, target, known)
            loss = self.loss(*of_rows)
            count = partial(count_of, self.loss, self.counts_by, of_rows[1])
        else:
            if not self.takes_partly_labelled:
                raise ValueError(
                    f"an example misses some of the target '{self.target}' and has the rest, and the loss cannot leave "
                    f"single values out; mark it as missing altogether (mask/{self.target})"
                )
            loss, counted = loss_over_known(self.loss, self.counts_by, prediction, target, known)
            count = partial(_itself, counted)
        if self.weight != 1.0:
            loss = self.weight * loss
        return Outcome(loss, count, prediction, target, known)


def _version(features: Tensor) -> int | None:
    """Return how often a tensor was changed in place; ``None`` under inference mode, which does not count it."""
    return None if features.is_inference() else features._version


def _itself(count: Tensor | float) -> Tensor | float:
    return count


def _only(target: Tensor, known: Tensor | None) -> Tensor:
    """Return the target with NaN in place of missing floats, or the labelled classes alone."""
    if known is None:
        return target.flatten() if not target.is_floating_point() else target
    return target.where(known, torch.nan) if target.is_floating_point() else target[known]


def _aligned(target: Tensor, prediction: Tensor, key: str) -> Tensor:
    if target.shape == prediction.shape:
        return target
    if target.shape == prediction.shape[:-1] and prediction.shape[-1] == 1:
        return target.unsqueeze(-1)
    classes = prediction.ndim == target.ndim + 1 and prediction.shape[2:] == target.shape[1:]
    raise ValueError(
        f"the head gives {list(prediction.shape)} and the target '{key}' holds floats {list(target.shape)}; make the "
        "head's output as wide as the target"
        + (", or give classes as integers" if classes else "")
        + ", or set loss_checks_shapes=true if the loss takes both as they are"
    )


def split_features(features: object, tasks: list[str]) -> list[Tensor]:
    """Return each task's features: the trunk gives one tensor for all, or a mapping with one per task.

    Raises:
        ValueError: If it gives anything else.
    """
    if isinstance(features, Tensor):
        return [features] * len(tasks)
    if isinstance(features, Mapping) and set(tasks) <= set(features):
        return [features[name] for name in tasks]
    raise ValueError(
        f"trunk gives a {type(features).__name__}; a trunk gives one tensor, or a mapping with one for each "
        f"of the tasks {', '.join(tasks)}."
    )
