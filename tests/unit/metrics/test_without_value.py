"""Metrics that are undefined for columns that do not vary, or for classes that do not occur."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics.classification as of_classes
import torchmetrics.regression as of_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import Metric

from multitask.metrics import R2
from multitask.metrics.known import OfKnown
from multitask.metrics.trials import is_relative
from multitask.task.targets import Binary, Classes, Standardized
from multitask.task.task import Outcome, Task

ROWS = 60
RELATIVE: dict[str, Callable[[int], Metric]] = {
    "R2": lambda columns: R2(),
    "R2Score": lambda columns: of_numbers.R2Score(),
    "ExplainedVariance": lambda columns: of_numbers.ExplainedVariance(),
    "RelativeSquaredError": lambda columns: of_numbers.RelativeSquaredError(num_outputs=columns),
}
"""Metrics that are means over columns."""
OF_ONE: dict[str, Callable[[], Metric]] = {
    **{name: lambda make=make: make(1) for name, make in RELATIVE.items()},
    "Pearson": of_numbers.PearsonCorrCoef,
    "Spearman": of_numbers.SpearmanCorrCoef,
    "Kendall": of_numbers.KendallRankCorrCoef,
    "Concordance": of_numbers.ConcordanceCorrCoef,
    "NRMSE by deviation": lambda: of_numbers.NormalizedRootMeanSquaredError(normalization="std"),
    "NRMSE by range": lambda: of_numbers.NormalizedRootMeanSquaredError(normalization="range"),
}
ABSOLUTE: dict[str, Callable[[], Metric]] = {
    "MAE": of_numbers.MeanAbsoluteError,
    "MSE": of_numbers.MeanSquaredError,
    "MAPE": of_numbers.MeanAbsolutePercentageError,
    "logarithms": of_numbers.MeanSquaredLogError,
    "NRMSE by mean": lambda: of_numbers.NormalizedRootMeanSquaredError(normalization="mean"),
    "cosine": of_numbers.CosineSimilarity,
}


def numbers(columns: int, offset: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return predictions in standard units, and targets, in float64."""
    generator = torch.Generator().manual_seed(seed)
    standard = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64)
    return 0.6 * standard + 0.5 * noise, 0.1 + 3 * standard + offset


def measured(
    metric: Metric, transform: Any, prediction: Tensor, target: Tensor, size: int, missing: bool = False
) -> float:
    """Return the metric of a task over the batches of a split."""
    task = Task(nn.Identity(), nn.MSELoss(), {"m": metric}, target="y", transform=transform, missing=missing)
    for p, y in zip(prediction.split(size), target.split(size), strict=True):
        known = ~y.isnan() if missing else None
        task.measure(Outcome(torch.zeros(()), lambda: 1.0, p, transform(y), known))
    return float(task.metrics.compute()["m"])


@pytest.mark.parametrize("name", OF_ONE)
def test_metrics_invariant_to_unit_and_origin_are_relative(name: str) -> None:
    assert is_relative(OF_ONE[name](), torch.zeros(5), torch.zeros(5))


@pytest.mark.parametrize("name", ABSOLUTE)
def test_metrics_with_a_unit_are_not_relative(name: str) -> None:
    shape = (5, 4) if name == "cosine" else (5,)
    assert not is_relative(ABSOLUTE[name](), torch.zeros(shape), torch.zeros(shape))


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(list(RELATIVE)),
    st.sampled_from([1, 7, 13, ROWS]),
    st.sampled_from([0.0, 1e3, -3e5, 1e6]),
    st.booleans(),
    st.integers(0, 20),
)
def test_a_column_that_does_not_vary_in_a_split_is_excluded_from_the_mean(
    name: str, size: int, offset: float, missing: bool, seed: int
) -> None:
    prediction, target = numbers(3, offset, seed)
    transform = Standardized()
    transform.observe(target)  # the training split, in which it varies
    transform.finish()
    target[:, 1] = target[seed, 1]
    if missing:
        target[seed % 50, 0] = torch.nan
    found = measured(RELATIVE[name](3), transform, prediction, target, size, missing)
    columns = []
    for j in (0, 2):
        known = ~target[:, j].isnan()
        p, y = (
            prediction[known, j] * transform.std[j] + (transform.mean[j] - offset),
            target[known, j] - offset,
        )
        error = (y - p) if name != "ExplainedVariance" else (y - p) - (y - p).mean()
        ratio = error.square().sum() / (y - y.mean()).square().sum()
        columns.append(ratio if name == "RelativeSquaredError" else 1 - ratio)
    assert found == pytest.approx(float(torch.stack(columns).mean()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", OF_ONE)
@pytest.mark.parametrize("size", [1, 7, ROWS])
@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6])
def test_a_metric_of_a_constant_target_is_nan(name: str, size: int, offset: float) -> None:
    prediction, target = numbers(1, offset)
    transform = Standardized()
    transform.observe(target)
    transform.finish()
    shape = (ROWS,)
    constant = target[:1].expand(ROWS, 1).reshape(shape).contiguous()
    assert torch.tensor(measured(OF_ONE[name](), transform, prediction.view(shape), constant, size)).isnan()


def test_values_that_differ_by_rounding_are_constant() -> None:
    metric = R2()
    metric.update(torch.randn(2, dtype=torch.float64), torch.tensor([0.3, 0.1 + 0.2], dtype=torch.float64))
    assert metric.compute().isnan()


def test_a_mean_over_columns_excludes_columns_without_a_value() -> None:
    prediction, target = numbers(2, 0.0)
    prediction[:, 1] = 1.0  # no correlation
    metric = OfKnown(_MeanOfPearsons())
    metric.update(prediction, target, target < 100)
    expected = of_numbers.PearsonCorrCoef()
    expected.update(prediction[:, 0], target[:, 0])
    assert metric.way == "columns"
    assert float(metric.compute()) == pytest.approx(float(expected.compute()), rel=1e-5)


class _MeanOfPearsons(Metric):
    """The mean over columns of the correlations."""

    full_state_update = False
    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", [], "cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.seen.append(torch.stack([prediction.view(len(target), -1), target.view(len(target), -1)], -1))

    def compute(self) -> Tensor:
        pairs = torch.cat(list(self.seen))
        return torch.stack([torch.corrcoef(column.T)[0, 1] for column in pairs.unbind(1)]).mean()


LABELS, AREAS = 4, ("AUROC", "AveragePrecision")


def alone(area: str, prediction: Tensor, target: Tensor) -> float | None:
    """Return the area of one label by counting pairs or ranks, or None if it is undefined."""
    prediction, target = prediction[target >= 0], target[target >= 0]  # NaN is missing
    positives, negatives = prediction[target == 1], prediction[target == 0]
    if len(positives) == 0 or (area == "AUROC" and len(negatives) == 0):
        return None
    if area == "AUROC":
        above = (positives[:, None] > negatives).double() + 0.5 * (positives[:, None] == negatives).double()
        return float(above.mean())
    better = (prediction >= positives[:, None]).sum(1).double()
    return float(((positives >= positives[:, None]).sum(1) / better).mean())


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(AREAS),
    st.sampled_from(["macro", "weighted"]),
    st.sampled_from([1, 7, 30]),
    st.sets(st.integers(0, LABELS - 1)),
    st.sets(st.integers(0, LABELS - 1)),
    st.booleans(),
    st.integers(0, 50),
)
def test_areas_are_averaged_over_the_labels_that_have_a_value(
    area: str, average: str, size: int, never: set[int], always: set[int], missing: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, LABELS, generator=generator)
    target = torch.randint(2, (30, LABELS), generator=generator).float()
    target[:, list(never)] = 0.0
    target[:, list(always)] = 1.0
    if missing:
        target[torch.rand(30, LABELS, generator=generator) < 0.3] = torch.nan
    metric = getattr(of_classes, f"Multilabel{area}")(LABELS, average=average)
    found = measured(metric, Binary(), logits, target, size, missing)
    values, weights = [], []
    for j in range(LABELS):
        value = alone(area, logits[:, j].sigmoid(), target[:, j])
        if value is not None:
            values.append(value)
            weights.append(float((target[:, j] == 1).sum()) if average == "weighted" else 1.0)
    expected = (
        sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights) if values else float("nan")
    )
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("thresholds", [None, 20])
@pytest.mark.parametrize("label", [0, 1])
def test_area_of_one_class_is_nan_if_it_does_not_depend_on_predictions(
    area: str, thresholds: int | None, label: int
) -> None:
    metric = getattr(of_classes, f"Binary{area}")(thresholds=thresholds)
    value = measured(metric, Binary(), torch.randn(9), torch.full((9,), float(label)), 4)
    if area == "AveragePrecision" and label == 1:
        assert value == pytest.approx(1.0)
    else:
        assert torch.tensor(value).isnan()


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("thresholds", [None, 1000])
@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_areas_are_averaged_over_the_classes_that_occur(
    area: str, thresholds: int | None, average: Any
) -> None:
    generator = torch.Generator().manual_seed(3)
    scores, target = torch.randn(40, 5, generator=generator), torch.randint(3, (40,), generator=generator)
    metric = getattr(of_classes, f"Multiclass{area}")(5, average=average, thresholds=thresholds)
    found = measured(metric, Classes(), scores, target, 7)
    shares = scores.softmax(1)
    values = torch.tensor([alone(area, shares[:, c], (target == c).long()) for c in range(3)])
    weights = torch.bincount(target).float() if average == "weighted" else torch.ones(3)
    assert found == pytest.approx(
        float((values * weights).sum() / weights.sum()), rel=1e-5 if thresholds is None else 2e-2
    )


def test_other_metrics_of_curves_need_every_class() -> None:
    metric = of_classes.MulticlassEER(3, average="macro")
    assert torch.tensor(measured(metric, Classes(), torch.randn(8, 3), torch.arange(8) % 2, 4)).isnan()
    assert not torch.tensor(
        measured(metric.clone(), Classes(), torch.randn(9, 3), torch.arange(9) % 3, 9)
    ).isnan()
