"""Metrics of partly labelled targets, over the columns and classes for which they are defined."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from multitask.losses.known import labelled_values, redrawn, whole_rows
from multitask.metrics.areas import area, classes_of, is_area, occurrences
from multitask.metrics.trials import is_relative, same, tried, varies


class OfKnown(Metric):
    """Wraps any metric to exclude missing values of the target, and columns or classes for which it is undefined.

    Rows without a label are excluded. For partly labelled rows, the wrapper tries the following ways on complete
    data, and uses the first that agrees with the metric itself:

    - ``values``: the metric pools all values (mean absolute error) and gets only the labelled ones;
    - ``columns``: the metric averages over columns (R², ``uniform_average``), and a copy of it per column gets the
      column's labelled values; columns with fewer than two, or for which it is undefined, are excluded from the mean;
    - ``marks``: the metric itself ignores marked values, ``ignore_index`` in integers and NaN in floats;
    - ``rows``: none of these, so a partly labelled row raises ``ValueError``.

    A metric that is invariant to scale and shift (R², a correlation) is undefined for constant targets, and its mean
    over columns excludes constant ones. torchmetrics' metrics of ROC and precision-recall curves are undefined for
    classes without positives or negatives, and their mean over classes excludes these. If nothing is defined, the
    result is NaN.

    Args:
        metric: The metric.
        ignore_index: The mark of missing labels, for a metric whose ``ignore_index`` is not set.
        missing: Whether labels can be missing.
    """

    counts: Tensor
    lowest: Tensor
    highest: Tensor
    classes: Tensor

    def __init__(self, metric: Metric, ignore_index: int = -100, missing: bool = True) -> None:
        super().__init__()
        self.metric = metric
        self.way: str | None = None
        self.relative = False
        self._columns = nn.ModuleList()
        self._mark = ignore_index
        self._missing = missing
        if is_area(metric):
            self.add_state("classes", torch.zeros(2, classes_of(metric), dtype=torch.float64), "sum")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """The metric's own."""
        return self.metric.higher_is_better

    def settle(self, prediction: Tensor, target: Tensor, known: Tensor | None = None) -> str:
        """Determine how to exclude missing values, once, and return the name of the way; see :meth:`update`."""
        if self.way is not None:
            return self.way
        self.relative = is_relative(self.metric, prediction, target)
        self.way = self._way(prediction, target, known) if self._missing or self.relative else "rows"
        columns = target.shape[1] if target.ndim > 1 and self.way != "values" else 1
        zeros = torch.zeros(columns, dtype=torch.float64, device=target.device)
        if self.way == "columns":
            self._columns.extend(self.metric.clone() for _ in range(columns))
            self.add_state("counts", zeros, "sum")
        if self.relative:
            self.add_state("lowest", zeros + torch.inf, "min")
            self.add_state("highest", zeros - torch.inf, "max")
        return self.way

    def update(
        self, prediction: Tensor, target: Tensor, known: Tensor | None = None, origin: Tensor | None = None
    ) -> None:
        """Update the metric with the labelled part of a batch.

        Args:
            prediction, target: ``[batch, …]``.
            known: Which target values are labelled; ``None`` for all.
            origin: Subtracted from both for metrics that are invariant to shifts, since sums of squares of values far
                from zero cancel. Broadcasts over the target, and must be the same for all batches.

        Raises:
            ValueError: If a row is partly labelled and the metric cannot exclude single values.
        """
        if known is not None and not known.any():
            return
        way = self.settle(prediction, target, known)
        if known is not None and way != "columns" and self._ignores(target, known):
            known = None
        if is_area(self.metric):
            self.classes += occurrences(self.metric, target, known)
        if self.relative:
            self._note_range(target, known)
            if origin is not None:
                prediction, target = prediction - origin, target - origin
        if way == "columns":
            mask = torch.ones_like(target, dtype=torch.bool) if known is None else known
            for j, metric in enumerate(self._columns):
                if mask[:, j].any():
                    assert isinstance(metric, Metric)
                    metric.update(prediction[:, j][mask[:, j]], target[:, j][mask[:, j]])
            self.counts += mask.movedim(1, -1).flatten(0, -2).sum(0)
            return
        if known is None:
            self.metric.update(prediction, target)
        elif (rows := whole_rows(known)) is not None:
            self.metric.update(prediction[rows], target[rows])
        elif way == "values":
            self.metric.update(*labelled_values(prediction, target, known))
        elif way == "marks":
            self.metric.update(prediction, self._marked(target, known))
        else:
            raise ValueError(f"{type(self.metric).__name__} cannot exclude single values of a row")

    def compute(self) -> Tensor:
        """Return the metric of all batches; NaN if it is undefined."""
        varied = varies(self.lowest, self.highest) if self.relative else None
        if self.way == "columns":
            enough = self.counts >= 2 if varied is None else (self.counts >= 2) & varied
            values = [
                metric.compute()
                for metric, defined in zip(self._columns, enough, strict=True)
                if defined and isinstance(metric, Metric)
            ]
            return torch.stack(values).nanmean() if values else self.counts.new_tensor(torch.nan)
        if varied is not None and not varied.any():
            return self.lowest.new_tensor(torch.nan)
        return area(self.metric, self.classes) if is_area(self.metric) else self.metric.compute()

    def reset(self) -> None:
        """Reset all states."""
        super().reset()
        for metric in (self.metric, *self._columns):
            metric.reset()

    def set_dtype(self, dst_type: str | torch.dtype) -> "OfKnown":
        """Set the dtype of the states."""
        for metric in (self.metric, *self._columns):
            metric.set_dtype(dst_type)
        return self

    def _ignores(self, target: Tensor, known: Tensor) -> bool:
        """Return whether the metric ignores exactly the missing values."""
        own = getattr(self.metric, "ignore_index", None)
        return isinstance(own, int) and known.shape == target.shape and torch.equal(known, target != own)

    def _note_range(self, target: Tensor, known: Tensor | None) -> None:
        """Update the smallest and the largest labelled value of each column."""
        mask = ~target.isnan() if known is None else known & ~target.isnan()
        columns, mask = (v.reshape(len(target), len(self.lowest), -1) for v in (target, mask))
        self.lowest = torch.minimum(self.lowest, columns.double().where(mask, torch.inf).amin((0, 2)))
        self.highest = torch.maximum(self.highest, columns.double().where(mask, -torch.inf).amax((0, 2)))

    def _way(self, prediction: Tensor, target: Tensor, known: Tensor | None) -> str:
        if target.ndim < 2 or target[0].numel() == 1 or (known is not None and known.shape != target.shape):
            return "rows"
        has_scores = prediction.ndim == target.ndim + 1 and prediction.shape[2:] == target.shape[1:]
        if prediction.shape[1:] != target.shape[1:] and not has_scores:
            return "rows"
        # In float64, so that a difference is not due to rounding.
        whole, complete = (
            v.double() if v.is_floating_point() else v for v in redrawn(prediction, target, known)
        )
        everything = torch.ones_like(complete, dtype=torch.bool)
        expected = tried(self.metric, whole, complete)
        if expected is None:
            return "rows"
        if same(tried(self.metric, *labelled_values(whole, complete, everything)), expected):
            return "values"
        if not has_scores:
            by_column = [
                tried(self.metric, whole[:, j].flatten(), complete[:, j].flatten())
                for j in range(target.shape[1])
            ]
            if all(value is not None and value.numel() == 1 for value in by_column):
                mean = torch.stack([value.reshape(()) for value in by_column if value is not None]).mean()
                if same(mean, expected):
                    return "columns"
        return "marks" if self._ignores_marks(whole, complete) else "rows"

    def _ignores_marks(self, prediction: Tensor, target: Tensor) -> bool:
        """Return whether the metric does not depend on predictions of marked targets; if so, set its mark."""
        if not target.is_floating_point() and not hasattr(self.metric, "ignore_index"):
            return False
        generator = torch.Generator().manual_seed(1)
        known = (torch.rand(target.shape, generator=generator) < 0.7).to(target.device)
        marks = self._marked(target, known)
        by_value = known if known.shape == prediction.shape else known.unsqueeze(1)
        other = prediction.where(by_value, prediction.roll(1, 0))
        marking = self.metric.clone()
        if getattr(marking, "ignore_index", 0) is None:
            marking.ignore_index = self._mark
        first, second = tried(marking, prediction, marks), tried(marking, other, marks)
        if first is None or not first.isfinite().all() or not same(first, second):
            return False
        self.metric = marking
        return True

    def _marked(self, target: Tensor, known: Tensor) -> Tensor:
        own = getattr(self.metric, "ignore_index", None)
        mark: Any = torch.nan if target.is_floating_point() else self._mark if own is None else own
        return target.masked_fill(~known, mark)
