"""Areas under curves and other points of them, which have a value for a class that there is, and that not all are."""

import torch
from torch import Tensor
from torchmetrics import Metric, classification

_BINARY = classification.BinaryPrecisionRecallCurve
_BY_LABEL = classification.MultilabelPrecisionRecallCurve
_BY_CLASS = classification.MulticlassPrecisionRecallCurve
_OF_POSITIVES = (
    classification.BinaryAveragePrecision,
    classification.MultilabelAveragePrecision,
    classification.MulticlassAveragePrecision,
)
_MEANS = (classification.MultilabelAUROC, classification.MulticlassAUROC, *_OF_POSITIVES)
"""Whose averages are means of the classes' figures, and not figures of a mean curve."""


def is_area(metric: Metric) -> bool:
    """Return whether a metric is made of one of torchmetrics' curves, which give 0 where there is no value."""
    return isinstance(metric, _BINARY | _BY_LABEL | _BY_CLASS)


def classes_of(metric: Metric) -> int:
    """Return how many classes or labels the metric has a curve of."""
    if isinstance(metric, _BY_LABEL):
        return int(metric.num_labels)
    return int(metric.num_classes) if isinstance(metric, _BY_CLASS) else 1


def occurrences(metric: Metric, target: Tensor, known: Tensor | None) -> Tensor:
    """Return how often each class or label is there, and how often it is not, ``[2, classes]`` in float64.

    Args:
        metric: An area.
        target: Classes ``[batch, …]``, or labels ``[batch, labels, …]``.
        known: Which of them are labelled; ``None`` where all are.
    """
    counted = torch.ones_like(target, dtype=torch.bool) if known is None else known
    if metric.ignore_index is not None:
        counted = counted & (target != metric.ignore_index)
    if isinstance(metric, _BY_LABEL):
        labels, counted = (v.movedim(1, -1).reshape(-1, target.shape[1]) for v in (target, counted))
        return torch.stack([((labels == label) & counted).sum(0) for label in (1, 0)]).double()
    chosen = target[counted]
    if isinstance(metric, _BY_CLASS):
        count = classes_of(metric)
        there = torch.bincount(chosen[(chosen >= 0) & (chosen < count)], minlength=count)
        return torch.stack([there, chosen.numel() - there]).double()
    return torch.stack([(chosen == label).sum() for label in (1, 0)])[:, None].double()


def area(metric: Metric, found: Tensor) -> Tensor:
    """Return an area, averaged over the classes or labels that have a value; NaN where none has.

    Args:
        metric: An area.
        found: See :func:`occurrences`, of all that the metric was shown.
    """
    positives, negatives = found
    average = getattr(metric, "average", None)
    nothing = found.new_tensor(torch.nan)
    if average == "micro" or classes_of(metric) == 1:
        whole = (positives.sum() > 0) & (negatives.sum() > 0 or isinstance(metric, _OF_POSITIVES))
        return metric.compute() if whole else nothing
    there = positives > 0
    if not isinstance(metric, _OF_POSITIVES):
        there = there & (negatives > 0)
    if there.all():
        return metric.compute()
    if not there.any() or not isinstance(metric, _MEANS) or average not in ("macro", "weighted"):
        return nothing
    values = _each(metric, average)
    weights = positives[there] if average == "weighted" else torch.ones_like(positives[there])
    return (values[there] * weights).sum() / weights.sum()


def _each(metric: Metric, average: str) -> Tensor:
    """Return the figure of each class or label."""
    computed = metric._computed
    metric.average, metric._computed = "none", None
    try:
        return torch.as_tensor(metric.compute())
    finally:
        metric.average, metric._computed = average, computed
