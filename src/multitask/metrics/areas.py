"""Metrics of ROC and precision-recall curves, which are undefined for classes without positives or negatives."""

import torch
from torch import Tensor
from torchmetrics import Metric, classification
from torchmetrics.utilities import dim_zero_cat

_BINARY = classification.BinaryPrecisionRecallCurve
_BY_LABEL = classification.MultilabelPrecisionRecallCurve
_BY_CLASS = classification.MulticlassPrecisionRecallCurve
_OF_POSITIVES = (
    classification.BinaryAveragePrecision,
    classification.MultilabelAveragePrecision,
    classification.MulticlassAveragePrecision,
)
_MEANS = (classification.MultilabelAUROC, classification.MulticlassAUROC, *_OF_POSITIVES)
"""Metrics that average the values of the classes, not their curves."""


def is_area(metric: Metric) -> bool:
    """Return whether a metric is based on one of torchmetrics' curves, which return 0 where they are undefined."""
    return isinstance(metric, _BINARY | _BY_LABEL | _BY_CLASS)


def classes_of(metric: Metric) -> int:
    """Return the number of classes or labels that the metric has a curve for."""
    if isinstance(metric, _BY_LABEL):
        return int(metric.num_labels)
    return int(metric.num_classes) if isinstance(metric, _BY_CLASS) else 1


def occurrences(metric: Metric, target: Tensor, known: Tensor | None) -> Tensor:
    """Return the number of positives and of negatives of each class or label, ``[2, classes]`` in float64.

    The target has classes ``[batch, …]``, or labels ``[batch, labels, …]``.
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
        positives = torch.bincount(chosen[(chosen >= 0) & (chosen < count)], minlength=count)
        return torch.stack([positives, chosen.numel() - positives]).double()
    return torch.stack([(chosen == label).sum() for label in (1, 0)])[:, None].double()


def area(metric: Metric, counts: Tensor) -> Tensor:
    """Return a metric averaged over the classes or labels for which it is defined; NaN if there are none.

    ``counts`` is the sum of :func:`occurrences` over all updates of the metric.
    """
    positives, negatives = counts
    average = getattr(metric, "average", None)
    undefined = counts.new_tensor(torch.nan)
    if average == "micro" or classes_of(metric) == 1:
        is_defined = (positives.sum() > 0) & (negatives.sum() > 0 or isinstance(metric, _OF_POSITIVES))
        return metric.compute() if is_defined else undefined
    defined = positives > 0
    if not isinstance(metric, _OF_POSITIVES):
        defined = defined & (negatives > 0)
    if defined.all():
        return metric.compute()
    if not defined.any() or not isinstance(metric, _MEANS) or average not in ("macro", "weighted"):
        return undefined
    values = _by_class(metric, average)
    weights = positives[defined] if average == "weighted" else torch.ones_like(positives[defined])
    return (values[defined] * weights).sum() / weights.sum()


def _by_class(metric: Metric, average: str) -> Tensor:
    """Return the metric of each class or label."""
    computed = metric._computed
    metric.average, metric._computed = "none", None
    try:
        return torch.as_tensor(metric.compute())
    finally:
        metric.average, metric._computed = average, computed


class BinaryAUROC(classification.BinaryAUROC):
    """``torchmetrics.classification.BinaryAUROC``, but NaN instead of 0 if all targets are of one class."""

    def compute(self) -> Tensor:  # type: ignore[override]  # as in torchmetrics
        """Return the area under the curve, a scalar in [0, 1]."""
        if self.thresholds is None:
            target = dim_zero_cat(self.target)
            positive = target == 1
            both = bool(positive.any() and (target == 0).any())
        else:
            both = bool(self.confmat[0].sum(-1).all())  # rows are the true classes
        return super().compute() if both else torch.tensor(torch.nan, device=self.device)
