"""Metrics over what has a value: labelled values, columns that vary, classes that are there."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from multitask.losses.known import heap, redrawn, whole_rows
from multitask.metrics.areas import area, classes_of, is_area, occurrences
from multitask.metrics.trials import is_relative, same, tried, varies


class OfKnown(Metric):
    """Any metric, over the labelled values of a target that may miss some, and over what has a value.

    Rows that are missing as a whole are left out. Of a row that misses a few values, the others count, in the
    first way that says the same as the metric itself where nothing is missing, found by trying:

    - ``values``: the metric pools all values (a mean absolute error), and gets the labelled ones alone;
    - ``columns``: the metric averages figures of columns (R², ``uniform_average``), and one of its kind gets each
      column's labelled values; a column with fewer than two in a split, or without a value, is left out of the mean;
    - ``marks``: the metric leaves out by itself what is marked: ``ignore_index`` among integers, NaN among floats;
    - ``rows``: none of these, so that a row labelled in part raises ``ValueError``.

    A metric that is the same in every unit and from every origin (R², a correlation) has no value where the target
    does not vary; a mean of it over columns is over those that do. An area under a curve of torchmetrics has none of
    a class that there is not, or that all are; a mean over classes is over the others. Where nothing has a value the
    figure is NaN.

    Args:
        metric: The metric.
        ignore_index: The mark of a missing label to a metric that has no ``ignore_index`` of its own yet.
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
        """As the metric says."""
        return self.metric.higher_is_better

    def settle(self, prediction: Tensor, target: Tensor, known: Tensor | None = None) -> str:
        """Find the way in which values can be left out, once, and return its name.

        Args:
            prediction: As metrics see it, ``[batch, …]``.
            target: As metrics see it, ``[batch, …]``.
            known: Which target values are labelled; ``None`` where all are.
        """
        if self.way is not None:
            return self.way
        self.relative = is_relative(self.metric, prediction, target)
        self.way = self._way(prediction, target, known) if self._missing or self.relative else "rows"
        columns = target.shape[1] if target.ndim > 1 and self.way != "values" else 1

        def each(value: float) -> Tensor:
            return torch.full((columns,), value, dtype=torch.float64, device=target.device)

        if self.way == "columns":
            self._columns.extend(self.metric.clone() for _ in range(columns))
            self.add_state("counts", each(0), "sum")
        if self.relative:
            self.add_state("lowest", each(torch.inf), "min")
            self.add_state("highest", each(-torch.inf), "max")
        return self.way

    def update(
        self, prediction: Tensor, target: Tensor, known: Tensor | None = None, origin: Tensor | None = None
    ) -> None:
        """Take in what is labelled of a batch.

        Args:
            prediction: ``[batch, …]``.
            target: ``[batch, …]``.
            known: Which target values are labelled; ``None`` where all are.
            origin: What a metric that is the same from every origin is to count from: where numbers are far from
                zero, what it makes of their squares would cancel. Of a shape that spreads over the target, and the
                same in all batches.

        Raises:
            ValueError: If a row is labelled in part and the metric cannot leave single values out.
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
            there = torch.ones_like(target, dtype=torch.bool) if known is None else known
            for j, metric in enumerate(self._columns):
                if there[:, j].any():
                    assert isinstance(metric, Metric)
                    metric.update(prediction[:, j][there[:, j]], target[:, j][there[:, j]])
            self.counts += there.movedim(1, -1).flatten(0, -2).sum(0)
            return
        rows = None if known is None else whole_rows(known)
        if known is None:
            self.metric.update(prediction, target)
        elif rows is not None:
            self.metric.update(prediction[rows], target[rows])
        elif way == "values":
            self.metric.update(*heap(prediction, target, known))
        elif way == "marks":
            self.metric.update(prediction, self._marked(target, known))
        else:
            raise ValueError(f"{type(self.metric).__name__} cannot leave out single values of a row")

    def compute(self) -> Tensor:
        """Return the metric of everything taken in; NaN where nothing of it has a value."""
        varied = varies(self.lowest, self.highest) if self.relative else None
        if self.way == "columns":
            enough = self.counts >= 2 if varied is None else (self.counts >= 2) & varied
            found = [
                metric.compute()
                for metric, there in zip(self._columns, enough, strict=True)
                if there and isinstance(metric, Metric)
            ]
            return torch.stack(found).nanmean() if found else self.counts.new_tensor(torch.nan)
        if varied is not None and not varied.any():
            return self.lowest.new_tensor(torch.nan)
        return area(self.metric, self.classes) if is_area(self.metric) else self.metric.compute()

    def reset(self) -> None:
        """Forget what was taken in."""
        super().reset()
        for metric in (self.metric, *self._columns):
            metric.reset()

    def set_dtype(self, dst_type: str | torch.dtype) -> "OfKnown":
        """Keep states in another dtype."""
        for metric in (self.metric, *self._columns):
            metric.set_dtype(dst_type)
        return self

    def _ignores(self, target: Tensor, known: Tensor) -> bool:
        """Return whether what is missing is just what the metric ignores."""
        own = getattr(self.metric, "ignore_index", None)
        return isinstance(own, int) and known.shape == target.shape and torch.equal(known, target != own)

    def _note_range(self, target: Tensor, known: Tensor | None) -> None:
        """Keep the least and the greatest labelled value of each column."""
        there = ~target.isnan() if known is None else known & ~target.isnan()
        columns, there = (v.reshape(len(target), len(self.lowest), -1) for v in (target, there))
        least = columns.double().where(there, torch.inf).amin((0, 2))
        self.lowest = torch.minimum(self.lowest, least)
        self.highest = torch.maximum(self.highest, columns.double().where(there, -torch.inf).amax((0, 2)))

    def _way(self, prediction: Tensor, target: Tensor, known: Tensor | None) -> str:
        if target.ndim < 2 or target[0].numel() == 1 or (known is not None and known.shape != target.shape):
            return "rows"
        of_scores = prediction.ndim == target.ndim + 1 and prediction.shape[2:] == target.shape[1:]
        if prediction.shape[1:] != target.shape[1:] and not of_scores:
            return "rows"
        # In double precision: what differs then is another figure, not rounding.
        whole, complete = (
            v.double() if v.is_floating_point() else v for v in redrawn(prediction, target, known)
        )
        everything = torch.ones_like(complete, dtype=torch.bool)
        wanted = tried(lambda metric: metric.update(whole, complete), self.metric)
        if wanted is None:
            return "rows"
        if same(tried(lambda metric: metric.update(*heap(whole, complete, everything)), self.metric), wanted):
            return "values"
        if not of_scores:
            by_column = [
                tried(partial(_shown, whole[:, j].flatten(), complete[:, j].flatten()), self.metric)
                for j in range(target.shape[1])
            ]
            if all(value is not None and value.numel() == 1 for value in by_column):
                mean = torch.stack([value.reshape(()) for value in by_column if value is not None]).mean()
                if same(mean, wanted):
                    return "columns"
        return "marks" if self._heeds_marks(whole, complete) else "rows"

    def _heeds_marks(self, prediction: Tensor, target: Tensor) -> bool:
        """Return whether what the prediction is where the target is marked makes no difference to the metric."""
        if not target.is_floating_point() and not hasattr(self.metric, "ignore_index"):
            return False
        generator = torch.Generator().manual_seed(1)
        known = (torch.rand(target.shape, generator=generator) < 0.7).to(target.device)
        marks = self._marked(target, known)
        by_value = known if known.shape == prediction.shape else known.unsqueeze(1)
        other = prediction.where(by_value, prediction.roll(1, 0))
        marking = self._marking()
        first = tried(lambda metric: metric.update(prediction, marks), marking)
        second = tried(lambda metric: metric.update(other, marks), marking)
        if first is None or not first.isfinite().all() or not same(first, second):
            return False
        self.metric = marking
        return True

    def _marking(self) -> Metric:
        """Return the metric, with a mark of what it ignores where it takes one and has none."""
        marking = self.metric.clone()
        if getattr(marking, "ignore_index", 0) is None:
            marking.ignore_index = self._mark
        return marking

    def _marked(self, target: Tensor, known: Tensor) -> Tensor:
        own = getattr(self.metric, "ignore_index", None)
        mark: Any = torch.nan if target.is_floating_point() else self._mark if own is None else own
        return target.masked_fill(~known, mark)


def _shown(prediction: Tensor, target: Tensor, metric: Metric) -> None:
    metric.update(prediction, target)
