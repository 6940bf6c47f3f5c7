"""A task: head, loss, metrics and target."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from multitask.losses.counts import (
    COUNTS,
    DEFAULT_IGNORE_INDEX,
    Count,
    count_of,
    has_count,
    ignored_by,
    weighs_classes,
)
from multitask.losses.known import loss_over_known, over_examples, whole_rows
from multitask.metrics.known import OfKnown
from multitask.metrics.precision import Exact, exact, home
from multitask.task.targets import Fitted, Transform

Batch = Mapping[str, Any]
"""Targets and the trunk's inputs by name; other keys are ignored."""


@dataclass(frozen=True)
class Outcome:
    """The result of a task on one batch."""

    loss: Tensor
    """Mean loss over the labelled values times the task's weight, a scalar; zero without labels."""
    weigh: Callable[[], Tensor | float]
    """Computes ``count`` on demand, since most steps do not need it."""
    prediction: Tensor
    """The head's output."""
    target: Tensor
    """The target as the loss compares it."""
    known: Tensor | None
    """Which target values are labelled, in the target's shape; ``None`` for all."""

    @property
    def count(self) -> Tensor | float:
        """The denominator of the mean loss: the number of labelled values, or the sum of their class weights."""
        return self.weigh()


class Task(nn.Module):
    """A head on the trunk's features, with a loss and metrics.

    Args:
        head: Features → prediction. Lazy modules infer the trunk's output width. ``None`` if ``prediction`` is given.
        loss: ``loss(prediction, target)`` → mean over the batch, a scalar.
        metrics: torchmetrics objects by name.
        target: Key of the target in the batch; ``inputs`` for a reconstruction.
        weight: A constant factor of the loss, applied before the weighting.
        missing: Whether targets can be missing: NaN in a float target, ``ignore_index`` in an integer target,
            ``False`` in ``mask/<target>`` if the batch has it. Missing values are excluded from loss and metrics.
            Implied by an ``ignore_index`` set on the loss.
        ignore_index: The integer that marks a missing class, in addition to the one that the loss ignores.
        transform: Transforms the target for the loss, and the prediction for the metrics; by default neither.
        count: The denominator of a batch's mean loss, which weights micro-batches, processes and evaluation batches.
            By default it is the loss's ``count(target)``, the denominator of torch's losses, or the number of
            labelled values that are not the loss's ``ignore_index``. ``examples``: the number of labelled values;
            ``weights``: the sum of their class weights in ``loss.weight``; ``batch``: the loss is not a mean over
            examples (contrastive pairs, Dice or Cox over a batch), and several batches are averaged by their numbers
            of examples.
        loss_checks_shapes: Whether the loss accepts predictions and targets of different shapes, and integers that
            are not classes.
        prediction: A :class:`multitask.task.seen.Derived` in place of a head, such as another task's prediction or
            its derivative.

    Raises:
        ValueError: If ``count`` is unknown, or is ``weights`` and the loss has none; if both head and prediction are
            given, or neither.
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
            raise ValueError("a task needs a loss, and either a head or a prediction.")
        if count is not None and count not in COUNTS:
            raise ValueError(f"tasks.*.count is null, {', '.join(COUNTS)}, not {count!r}.")
        if count == "weights" and getattr(loss, "weight", None) is None:
            raise ValueError(f"tasks.*.count is weights, but {type(loss).__name__} has no attribute weight.")
        self.head = head
        self.prediction = prediction
        self.loss = loss
        self._ignored = None if loss_checks_shapes else ignored_by(loss)
        """The class that loss and metrics ignore."""
        if self._ignored is not None and not missing:
            ignore_index = self._ignored
            # Other losses define their own mean over a batch without labels.
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
        """Whether the head modifies its features in place, by training mode; determined on the first batch."""
        self.takes_partly_labelled = not loss_checks_shapes
        """Whether the loss can exclude single values of an example; the checks before training may set it to False."""

    def forward(self, features: Tensor, batch: Batch) -> Outcome:
        """Predict and compare with the batch's target; see :meth:`outcome`."""
        return self.outcome(self.predict(features), batch)

    def predict(self, features: Tensor) -> Tensor:
        """Return the head's prediction, without modifying features that other heads share.

        Raises ``ValueError`` if the head modifies its features in place in some batches only.
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
                "the head modifies its features in place in some batches only; let it use a copy, or set "
                "inplace=False"
            )
        return prediction

    def outcome(self, prediction: Tensor, batch: Batch) -> Outcome:
        """Compare a prediction with the batch's target.

        Raises ``ValueError`` if their shapes do not match, which a loss might silently broadcast.
        """
        return self.compare(prediction, *self._aligned(prediction, batch))

    def count(self, batch: Batch, chosen: Tensor | None = None) -> Tensor | float:
        """Return the count of a batch's mean loss, before any forward pass.

        ``chosen`` is a mask or the indices of the examples to count, by default all.
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
        """Whether the count is proportional to the number of examples in every batch."""
        if self.missing:
            return False
        if self.counts_by == "batch":
            return True
        if weighs_classes(self.loss, self.counts_by) or (self.counts_by is None and has_count(self.loss)):
            return False
        return getattr(self.loss, "ignore_index", None) in (None, DEFAULT_IGNORE_INDEX)

    @property
    def fitted(self) -> list[Fitted]:
        """The transform and loss if they are fitted to the training targets before the first step."""
        parts: list[object] = [self.transform, self.loss]
        return [part for part in parts if isinstance(part, Fitted)]

    def observe(self, batch: Batch) -> None:
        """Pass a batch of training targets to the fitted parts."""
        target, known = self._compared(batch)
        if isinstance(self.transform, Fitted):
            values = batch[self.target]
            values = values if values.is_floating_point() else values.double()
            self.transform.observe(_labelled(values, known))
        if isinstance(self.loss, Fitted):
            self.loss.observe(_labelled(target, known))

    def measure(self, outcome: Outcome) -> None:
        """Update the metrics with the labelled part of an outcome."""
        shown = self.shown(outcome)
        self.metrics.update(*shown, origin=self.transform.origin(shown[1]))

    def shown(self, outcome: Outcome) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None]:
        """Return the arguments of the metrics: prediction, target, and which values are labelled if some may not be.

        Float predictions of float targets are float64, so that transforming them back to the target's units loses
        no digits. Class scores keep their dtype, to save memory.
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
        if known.shape != target.shape:  # the transform joined several values into one
            rows = whole_rows(known)
            if rows is None:
                raise ValueError(
                    "transform joins values, some of which are missing; omit it, or mark whole rows"
                )
            known = over_examples(rows, target).expand(target.shape)
        return prediction, target, known

    def by_half(self, prediction: Tensor, batch: Batch) -> list[Outcome]:
        """Return the outcomes of the even and of the odd examples.

        In this way, halves of micro-batches join to halves of the whole batch.
        """
        target, known = self._aligned(prediction, batch)
        index = torch.arange(len(prediction), device=prediction.device) % 2
        masks = (index == 0, index == 1)
        return [
            self.compare(prediction[mask], target[mask], None if known is None else known[mask])
            for mask in masks
        ]

    def each(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each example, shape ``[batch]``."""
        target, _ = self._aligned(prediction, batch)
        weighted = weighs_classes(self.loss, self.counts_by)
        if getattr(self.loss, "reduction", None) == "mean" and not weighted:
            unreduced = copy(self.loss)
            unreduced.reduction = "none"  # type: ignore[attr-defined]
            values = unreduced(prediction, target)
            return self.weight * (values.flatten(1).mean(1) if values.ndim > 1 else values)
        targets = target.split(1)
        losses = torch.stack([self.loss(p, t) for p, t in zip(prediction.split(1), targets, strict=True)])
        if weighted:  # the weighted mean over one example does not depend on its weight
            by_example = [count_of(self.loss, self.counts_by, one) for one in targets]
            counts = torch.stack([torch.as_tensor(count) for count in by_example])
            losses = losses * counts / counts.mean()
        return self.weight * losses

    def _aligned(self, prediction: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the target in the prediction's shape, and which of its values are labelled (``None`` for all)."""
        target, known = self._compared(batch, prediction.dtype)
        if target.is_floating_point() and not self.loss_checks_shapes:
            target = _aligned(target, prediction, self.target)
        return target, None if known is None else known.view_as(target)

    def _compared(self, batch: Batch, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
        """Return the transformed target, and which of its values are labelled (``None`` for all).

        Targets may be float64, so that the transform loses no digits; the result is float64 only if ``dtype`` is.
        """
        target = batch[self.target]
        known = self.labelled(target, batch) if self.missing else None
        target = target if type(self.transform) is Transform else self.transform(target)
        if target.dtype == torch.float64 and dtype != torch.float64:
            target = target.float()
        return target, known

    def labelled(self, target: Tensor, batch: Batch) -> Tensor:
        """Return a mask of the labelled values of a target, in its shape."""
        known = ~target.isnan() if target.is_floating_point() else target != self.ignore_index
        if self._ignored not in (None, self.ignore_index) and not target.is_floating_point():
            known = known & (target != self._ignored)
        mask = batch.get(f"mask/{self.target}")
        if mask is not None:
            if mask.shape != known.shape[: mask.ndim]:
                raise ValueError(
                    f"mask/{self.target} is {list(mask.shape)} and the target '{self.target}' {list(known.shape)}; "
                    "give the mask the target's shape, or one value per example."
                )
            known = known & over_examples(mask, known)
        return known

    def compare(self, prediction: Tensor, target: Tensor, known: Tensor | None) -> Outcome:
        """Return the outcome of a prediction, given the transformed target and which of its values are labelled."""
        if known is not None and known.all():
            known = None
        rows = None if known is None else whole_rows(known)
        if known is None or rows is not None:
            predicted, compared = (prediction, target) if rows is None else (prediction[rows], target[rows])
            if compared.numel() == 0:
                return Outcome(predicted.sum() * 0.0, lambda: 0.0, prediction, target, known)
            loss = self.loss(predicted, compared)

            def count() -> Tensor | float:
                return count_of(self.loss, self.counts_by, compared)
        else:
            if not self.takes_partly_labelled:
                raise ValueError(
                    f"an example lacks some values of the target '{self.target}', and the loss cannot exclude "
                    f"single values; mark the whole example as missing (mask/{self.target})"
                )
            loss, counted = loss_over_known(self.loss, self.counts_by, prediction, target, known)

            def count() -> Tensor | float:
                return counted

        if self.weight != 1.0:
            loss = self.weight * loss
        return Outcome(loss, count, prediction, target, known)


def _version(features: Tensor) -> int | None:
    """Return a tensor's count of in-place modifications; ``None`` in inference mode, which does not count them."""
    return None if features.is_inference() else features._version


def _labelled(target: Tensor, known: Tensor | None) -> Tensor:
    """Return a float target with NaN for missing values, or the labelled classes, flattened."""
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
        f"the head gives {list(prediction.shape)}, but the target '{key}' has floats {list(target.shape)}; make the "
        "head's output as wide as the target"
        + (", or give classes as integers" if classes else "")
        + ", or set loss_checks_shapes=true if the loss accepts these shapes"
    )
