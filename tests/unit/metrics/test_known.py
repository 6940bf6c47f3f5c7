"""Metrics of targets with missing values use the labelled values, for any batch size."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchmetrics.classification as of_classes
import torchmetrics.regression as of_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from multitask.losses.pixels import DepthL1
from multitask.metrics import AngleMean, DepthAbsoluteError, MeanIoU, PixelAccuracy
from multitask.metrics.known import OfKnown
from multitask.task.targets import Binary
from multitask.task.task import Task
from tests.forks import server

ROWS, COLUMNS = 40, 3
SCALE, SHIFT = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([0.0, 50.0, 900.0])


def numbers(seed: int, share: float = 0.7) -> tuple[Tensor, Tensor, Tensor]:
    """Return predictions, targets with columns of different scales, and a mask with five or more per column."""
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(ROWS, COLUMNS, generator=generator) + 1) * SCALE + SHIFT
    prediction = target + 0.2 * SCALE * torch.randn(ROWS, COLUMNS, generator=generator)
    known = torch.rand(ROWS, COLUMNS, generator=generator) < share
    known[:5] = True
    return prediction.double(), target.double(), known


def labels(seed: int, share: float = 0.7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(2, (ROWS, COLUMNS), generator=generator)
    target[:2] = torch.tensor([[0] * COLUMNS, [1] * COLUMNS])
    prediction = (target + torch.randn(ROWS, COLUMNS, generator=generator)).sigmoid()
    known = torch.rand(ROWS, COLUMNS, generator=generator) < share
    known[:2] = True
    return prediction, target, known


def in_batches(metric: OfKnown, prediction: Tensor, target: Tensor, known: Tensor, size: int) -> float:
    """Return a metric over batches, in which missing targets have invalid values."""
    invalid = torch.full_like(target, -100 if not target.is_floating_point() else torch.nan)
    target = target.where(known, invalid)
    for p, t, k in zip(prediction.split(size), target.split(size), known.split(size), strict=True):
        metric.update(p, t, None if k.all() else k)
    return float(metric.compute())


def by_column(metric: Metric, prediction: Tensor, target: Tensor, known: Tensor) -> float:
    found = []
    for j in range(target.shape[1]):
        one = metric.clone()
        one.update(prediction[known[:, j], j], target[known[:, j], j])
        found.append(one.compute())
    return float(torch.stack(found).mean())


def pooled(metric: Metric, prediction: Tensor, target: Tensor, known: Tensor) -> float:
    metric.update(prediction[known], target[known])
    return float(metric.compute())


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(
        [
            (of_numbers.R2Score(), by_column, "columns"),
            (of_numbers.ExplainedVariance(), by_column, "columns"),
            (of_numbers.RelativeSquaredError(num_outputs=COLUMNS), None, "columns"),
            (of_numbers.MeanAbsoluteError(), pooled, "values"),
            (of_numbers.MeanSquaredError(squared=False), pooled, "values"),
            (of_numbers.MeanAbsolutePercentageError(), pooled, "values"),
            (of_numbers.MeanSquaredLogError(), pooled, "values"),
        ]
    ),
    st.sampled_from([1, 3, 7, 40]),
    st.integers(0, 30),
)
def test_metrics_of_numbers_keep_columns_and_do_not_depend_on_batches(case: Any, size: int, seed: int):
    metric, reference, way = case
    metric = metric.clone().set_dtype(torch.float64)
    of = OfKnown(metric.clone())
    data = numbers(seed)
    assert of.settle(*data) == way
    found = in_batches(of, *data, size)
    if reference is None:
        metric, reference = of_numbers.RelativeSquaredError().set_dtype(torch.float64), by_column
    assert found == pytest.approx(reference(metric.clone(), *data), rel=1e-6)


MULTILABEL = [
    of_classes.MultilabelAUROC(COLUMNS),
    of_classes.MultilabelAveragePrecision(COLUMNS),
    of_classes.MultilabelF1Score(COLUMNS, average="macro"),
    of_classes.MultilabelAccuracy(COLUMNS),
]
ALONE = [
    of_classes.BinaryAUROC(),
    of_classes.BinaryAveragePrecision(),
    of_classes.BinaryF1Score(),
    of_classes.BinaryAccuracy(),
]


@pytest.mark.parametrize(("metric", "alone"), list(zip(MULTILABEL, ALONE, strict=True)), ids=str)
@pytest.mark.parametrize("size", [1, 7, 40])
def test_metrics_of_labels_average_over_each_labels_known_values(metric: Any, alone: Any, size: int):
    prediction, target, known = labels(size)
    of = OfKnown(metric.clone())
    found = in_batches(of, prediction, target, known, size)
    assert found == pytest.approx(by_column(alone, prediction, target, known), rel=1e-5)


def test_missing_labels_with_another_ignore_index():
    prediction, target, known = labels(0)
    metric = of_classes.MultilabelF1Score(COLUMNS, average="micro", ignore_index=-7)
    found = in_batches(OfKnown(metric), prediction, target, known, 40)
    alone = of_classes.BinaryF1Score()
    assert found == pytest.approx(pooled(alone, prediction, target, known), rel=1e-5)


@pytest.mark.parametrize("metric", [of_classes.BinaryAUROC(), of_classes.BinaryAccuracy()])
def test_binary_metrics_pool_labels(metric: Any):
    data = labels(1)
    assert in_batches(OfKnown(metric.clone()), *data, 7) == pytest.approx(pooled(metric, *data), rel=1e-5)


@pytest.mark.parametrize(
    "metric",
    [of_classes.MulticlassAccuracy(4), of_classes.MulticlassJaccardIndex(4), MeanIoU(4), PixelAccuracy(4)],
)
def test_metrics_of_dense_classes(metric: Any):
    prediction, target = torch.randn(6, 4, 5, 5), torch.randint(4, (6, 5, 5))
    known = torch.rand(6, 5, 5) < 0.6
    expected = metric.clone()
    expected.update(prediction.movedim(1, -1)[known], target[known])
    found = in_batches(OfKnown(metric.clone()), prediction, target, known, 2)
    assert found == pytest.approx(float(expected.compute()), rel=1e-5)


def test_metrics_of_vector_valued_pixels():
    prediction, target = torch.randn(6, 3, 5, 5), nn.functional.normalize(torch.randn(6, 3, 5, 5), dim=1)
    known = (torch.rand(6, 1, 5, 5) < 0.6).expand(target.shape)
    expected = AngleMean()
    expected.update(prediction, target * known)  # a zero vector is invalid
    found = in_batches(OfKnown(AngleMean()), prediction, target, known, 2)
    assert found == pytest.approx(float(expected.compute()), rel=1e-5)


def test_depth_with_a_mask():
    prediction, target = torch.rand(6, 1, 5, 5), torch.rand(6, 1, 5, 5) + 0.1
    known = torch.rand(6, 1, 5, 5) < 0.6
    task = Task(nn.Identity(), DepthL1(), {"m": DepthAbsoluteError()}, target="y", missing=True)
    task.measure(task(prediction, {"y": target, "mask/y": known}))
    expected = (prediction - target).abs()[known].mean()
    assert float(task.metrics.compute()["m"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "shape"),
    [
        (of_numbers.R2Score(multioutput="variance_weighted"), (24, 3)),
        (of_numbers.CosineSimilarity(reduction="mean"), (24, 3)),
        (of_numbers.KLDivergence(), (24, 3)),
        (StructuralSimilarityIndexMeasure(data_range=1.0), (24, 1, 16, 16)),
    ],
)
def test_metrics_of_whole_rows_reject_partial_rows(metric: Any, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    known = torch.ones(shape, dtype=torch.bool)
    known[3] = False
    of = OfKnown(metric.clone())
    metric.update(prediction[known.flatten(1).all(1)], target[known.flatten(1).all(1)])
    assert in_batches(of, prediction, target, known, 24) == pytest.approx(float(metric.compute()), rel=1e-5)
    known[5].view(-1)[0] = False
    with pytest.raises(ValueError, match="cannot exclude single values"):
        of.update(prediction, target, known)


def test_psnr_accepts_partial_images():
    prediction, target = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)
    known = torch.rand(6, 1, 8, 8) < 0.5
    metric = PeakSignalNoiseRatio(data_range=1.0)
    assert in_batches(OfKnown(metric.clone()), prediction, target, known, 2) == pytest.approx(
        pooled(metric, prediction, target, known), rel=1e-5
    )


def test_columns_without_two_values_are_excluded_also_after_a_reset():
    prediction, target, known = numbers(0)
    known[:, 1] = False
    known[0, 1] = True
    metric = of_numbers.R2Score().set_dtype(torch.float64)
    of = OfKnown(of_numbers.R2Score())
    of.settle(prediction, target, known)
    of.set_dtype(torch.float64)
    expected = by_column(metric, prediction[:, ::2], target[:, ::2], known[:, ::2])
    for _ in range(2):
        assert in_batches(of, prediction, target, known, 7) == pytest.approx(expected, rel=1e-6)
        of.reset()
    of.update(prediction, target, torch.zeros_like(known))
    of.update(prediction[:1], target[:1], None)
    assert torch.isnan(of.compute())


def test_direction_is_that_of_the_metric():
    assert OfKnown(of_numbers.R2Score()).higher_is_better is True
    assert OfKnown(of_numbers.MeanAbsoluteError()).higher_is_better is False


def test_a_task_passes_probabilities_and_known_labels_to_metrics():
    metrics = {"auroc": of_classes.MultilabelAUROC(COLUMNS)}
    task = Task(nn.Identity(), nn.BCEWithLogitsLoss(), metrics, target="y", missing=True, transform=Binary())
    prediction, target, known = labels(3)
    for part in (slice(0, 9), slice(9, ROWS)):
        marked = target.where(known, -100)[part]
        task.measure(task(prediction.logit()[part], {"y": marked}))
    expected = by_column(of_classes.BinaryAUROC(), prediction, target, known)
    assert float(task.metrics.compute()["auroc"]) == pytest.approx(expected, rel=1e-5)


def _on_two(rank: int, address: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    prediction, target, known = numbers(5)
    known[::2, 0] = False  # one process has a column without a value
    metric = OfKnown(of_numbers.R2Score())
    metric.settle(prediction, target, known)
    metric.set_dtype(torch.float64)
    part = slice(rank, None, 2)
    metric.update(prediction[part], target[part], known[part])
    torch.save(metric.compute(), f"{out}.{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_columns_of_two_processes_equal_one(tmp_path: Path):
    out = str(tmp_path / "value")
    store = f"file://{tmp_path}/store"
    processes = [server().Process(target=_on_two, args=(rank, store, out)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    prediction, target, known = numbers(5)
    known[::2, 0] = False
    expected = by_column(of_numbers.R2Score().set_dtype(torch.float64), prediction, target, known)
    for rank in range(2):
        assert float(torch.load(f"{out}.{rank}")) == pytest.approx(expected, rel=1e-9)
