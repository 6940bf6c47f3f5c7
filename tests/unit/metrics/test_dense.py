"""Dense metrics equal references computed pixel by pixel."""

import math

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from multitask.metrics import (
    AngleMean,
    AngleMedian,
    AngleWithin,
    DepthAbsoluteError,
    DepthRelativeError,
    MeanIoU,
    PixelAccuracy,
)

CLASSES = 4


def segmentation(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(-1, CLASSES - 1, (batch, 5, 7), generator=generator)  # the last class never occurs
    return torch.randn(batch, CLASSES, 5, 7, generator=generator) - torch.tensor([0, 0, 0, 99.0]).view(
        1, 4, 1, 1
    ), target


def depth(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(batch, 1, 5, 7, generator=generator) * 5 + 0.5
    target[torch.rand(target.shape, generator=generator) < 0.3] = 0
    return torch.rand(batch, 1, 5, 7, generator=generator) * 5, target


def normals(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.nn.functional.normalize(torch.randn(batch, 3, 5, 7, generator=generator), dim=1)
    prediction = 3 * (target + 0.4 * torch.randn(batch, 3, 5, 7, generator=generator))
    return prediction, target * (torch.rand(batch, 1, 5, 7, generator=generator) > 0.3)


def reference_iou(prediction: Tensor, target: Tensor) -> float:
    chosen, found = prediction.argmax(1).flatten().tolist(), target.flatten().tolist()
    kept = [(p, t) for p, t in zip(chosen, found, strict=True) if t != -1]
    scores = []
    for c in range(CLASSES):
        union = sum(p == c or t == c for p, t in kept)
        if union:
            scores.append(sum(p == c and t == c for p, t in kept) / union)
    return sum(scores) / len(scores)


def reference_accuracy(prediction: Tensor, target: Tensor) -> float:
    kept = target != -1
    return float((prediction.argmax(1) == target)[kept].double().mean())


def reference_absolute(prediction: Tensor, target: Tensor) -> float:
    kept = target != 0
    return float((prediction - target)[kept].double().abs().mean())


def reference_relative(prediction: Tensor, target: Tensor) -> float:
    kept = target != 0
    return float(((prediction - target).abs() / target)[kept].double().mean())


def reference_angles(prediction: Tensor, target: Tensor) -> Tensor:
    kept = target.norm(dim=1) > 0
    u, v = prediction.movedim(1, -1)[kept].double(), target.movedim(1, -1)[kept].double()
    return torch.rad2deg(torch.acos((u * v).sum(-1) / u.norm(dim=-1) / v.norm(dim=-1)))


CASES = {
    "miou": (lambda pooling: MeanIoU(CLASSES, pooling=pooling), segmentation, reference_iou, 1e-6),
    "accuracy": (
        lambda pooling: PixelAccuracy(CLASSES, pooling=pooling),
        segmentation,
        reference_accuracy,
        1e-6,
    ),
    "absolute": (lambda pooling: DepthAbsoluteError(pooling), depth, reference_absolute, 1e-6),
    "relative": (lambda pooling: DepthRelativeError(pooling), depth, reference_relative, 1e-6),
    "mean": (
        lambda pooling: AngleMean(pooling),
        normals,
        lambda p, t: float(reference_angles(p, t).mean()),
        1e-4,
    ),
    "median": (
        lambda pooling: AngleMedian(pooling),
        normals,
        lambda p, t: float(reference_angles(p, t).median()),
        2.6e-3,
    ),
    "within": (
        lambda pooling: AngleWithin(22.5, pooling),
        normals,
        lambda p, t: float((reference_angles(p, t) < 22.5).double().mean()),
        1e-6,
    ),
}
BATCHES = (3, 1, 4)


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_pooled_over_batches(name: str):
    make, data, reference, tolerance = CASES[name]
    batches = [data(size, seed) for seed, size in enumerate(BATCHES)]
    expected = reference(*(torch.cat(part) for part in zip(*batches, strict=True)))
    metric = make("pixels")
    for batch in batches:
        metric.update(*batch)
    assert float(metric.compute()) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_pooling_batches_averages_over_batches(name: str):
    make, data, reference, tolerance = CASES[name]
    batches = [data(size, seed) for seed, size in enumerate(BATCHES)]
    expected = sum(reference(*batch) for batch in batches) / len(batches)
    metric = make("batches")
    for batch in batches:
        metric.update(*batch)
    prediction, target = data(2, 9)
    metric.update(prediction, torch.full_like(target, -1) if name in ("miou", "accuracy") else target * 0)
    assert float(metric.compute()) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_value_and_direction_of_a_perfect_prediction(name: str):
    make, data, _, tolerance = CASES[name]
    _, target = data(2, 0)
    metric = make("pixels")
    if name in ("miou", "accuracy"):
        prediction = torch.nn.functional.one_hot(target.clamp(min=0), CLASSES).movedim(-1, 1).float()
    else:
        prediction = target
    metric.update(prediction, target)
    best = 1.0 if metric.higher_is_better else 0.0
    assert float(metric.compute()) == pytest.approx(best, abs=tolerance)
    assert metric.higher_is_better is (name in ("miou", "accuracy", "within"))


@pytest.mark.parametrize("name", CASES)
def test_value_without_valid_pixels_is_nan(name: str):
    make, data, _, _ = CASES[name]
    prediction, target = data(2, 0)
    metric = make("pixels")
    metric.update(prediction, torch.full_like(target, -1) if name in ("miou", "accuracy") else target * 0)
    assert math.isnan(float(metric.compute()))


@pytest.mark.parametrize("name", ["absolute", "relative", "mean", "median", "within"])
def test_nan_targets_are_invalid_too(name: str):
    make, data, reference, tolerance = CASES[name]
    prediction, target = data(2, 0)
    metric = make("pixels")
    metric.update(prediction, torch.where(target == 0, torch.nan, target))
    assert float(metric.compute()) == pytest.approx(reference(prediction, target), abs=tolerance)


def test_reset():
    metric = DepthAbsoluteError()
    metric.update(*depth(2, 0))
    metric.reset()
    metric.update(*depth(2, 1))
    assert float(metric.compute()) == pytest.approx(reference_absolute(*depth(2, 1)), abs=1e-6)


@pytest.mark.parametrize("pooling", ["pixels", "batches"])
def test_collection_does_not_merge_metrics_that_agree_on_the_first_batch(pooling: str):
    """In the first batch no angle is below any threshold, so all states are equal."""
    metrics = MetricCollection(
        {f"within_{round(degrees)}": AngleWithin(degrees, pooling) for degrees in (11.25, 22.5, 30)}
        | {"mean": AngleMean(pooling)}
    )
    target = torch.zeros(1, 3, 1, 2)
    target[:, 0] = 1
    metrics.update(-target, target)
    metrics.update(
        torch.tensor([math.cos(math.radians(25)), math.sin(math.radians(25)), 0])
        .view(1, 3, 1, 1)
        .expand(1, 3, 1, 2),
        target,
    )
    values = {name: round(float(value), 4) for name, value in metrics.compute().items()}
    assert values == {"within_11": 0, "within_22": 0, "within_30": 0.5, "mean": 102.5}


@pytest.mark.parametrize("pooling", ["pixels", "batches"])
def test_collection_may_share_one_confusion_matrix(pooling: str):
    metrics = MetricCollection(
        {"miou": MeanIoU(CLASSES, pooling=pooling), "acc": PixelAccuracy(CLASSES, pooling=pooling)}
    )
    for seed in range(2):
        metrics.update(*segmentation(2, seed))
    single = MeanIoU(CLASSES, pooling=pooling)
    for seed in range(2):
        single.update(*segmentation(2, seed))
    assert float(metrics.compute()["miou"]) == float(single.compute())
    assert float(metrics.compute()["acc"]) != float(single.compute())


def test_labelled_pixels_alone_give_the_same_value():
    prediction, target = segmentation(3, 0)
    kept = target != -1
    metric = MeanIoU(CLASSES)
    metric.update(prediction.movedim(1, -1)[kept], target[kept])
    assert float(metric.compute()) == pytest.approx(reference_iou(prediction, target), abs=1e-6)


def test_small_angles_are_exact():
    angle = 1e-4
    target = torch.tensor([1.0, 0, 0], dtype=torch.float64).view(1, 3, 1, 1)
    radians = math.radians(angle)
    prediction = torch.tensor([math.cos(radians), math.sin(radians), 0], dtype=torch.float64).view(1, 3, 1, 1)
    metric = AngleMean()
    metric.update(prediction, target)
    assert float(metric.compute()) == pytest.approx(angle, rel=1e-5)


def test_mismatched_shapes_and_classes_are_rejected():
    with pytest.raises(ValueError, match=r"shape \[2, 4, 5, 7\], got \[2, 3, 5, 7\]"):
        MeanIoU(4).update(torch.rand(2, 3, 5, 7), torch.zeros(2, 5, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="num_classes=4"):
        MeanIoU(4).update(torch.rand(2, 4, 5, 7), torch.full((2, 5, 7), 4))
    with pytest.raises(ValueError, match="DepthAbsoluteError"):
        DepthAbsoluteError().update(torch.rand(2, 1, 5, 7), torch.rand(2, 5, 7))
    with pytest.raises(ValueError, match="Normal"):
        AngleMean().update(torch.rand(2, 3, 5, 7), torch.rand(1, 3, 5, 7))
    with pytest.raises(ValueError, match="pooling"):
        AngleMean(pooling="images")
