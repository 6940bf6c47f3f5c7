"""Metrics of targets far from zero agree with float64, for any dtype of the module."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics import regression as theirs

from multitask.metrics import R2, DepthAbsoluteError
from multitask.metrics import precision as module_of_precision
from multitask.metrics.precision import Exact, home
from multitask.task.measurement import Measurement
from multitask.task.targets import Standardized
from multitask.task.task import Outcome, Task

CONFIGS = Path(__file__).parents[3] / "configs" / "task"
Reference = Callable[[Tensor, Tensor], Tensor]


def r2(p: Tensor, y: Tensor) -> Tensor:
    return 1 - (y - p).square().sum() / (y - y.mean()).square().sum()


def explained_variance(p: Tensor, y: Tensor) -> Tensor:
    return 1 - (y - p).var() / y.var()


def pearson(p: Tensor, y: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([p, y]))[0, 1]


def concordance(p: Tensor, y: Tensor) -> Tensor:
    covariance = torch.cov(torch.stack([p, y]))
    return 2 * covariance[0, 1] / (covariance.trace() + (p.mean() - y.mean()).square())


def ranks(v: Tensor) -> Tensor:
    return (v[:, None] > v).sum(1) + (v[:, None] == v).double().sum(1) / 2


SHIFT_INVARIANT: dict[str, Reference] = {
    "torchmetrics.MeanAbsoluteError": lambda p, y: (p - y).abs().mean(),
    "torchmetrics.MeanSquaredError": lambda p, y: (p - y).square().mean(),
    "multitask.metrics.R2": r2,
    "multitask.metrics.DepthAbsoluteError": lambda p, y: (p - y).abs().mean(),
}
"""Shipped metrics that do not change if target and prediction are shifted by a constant."""
OTHERS = {
    *(f"torchmetrics.classification.Binary{n}" for n in ("Accuracy", "F1Score")),
    "torchmetrics.classification.MulticlassAccuracy",
    *(
        f"multitask.metrics.{n}"
        for n in ("BinaryAUROC", "AngleMean", "AngleMedian", "AngleWithin", "MeanIoU", "PixelAccuracy")
    ),
    "multitask.metrics.DepthRelativeError",  # relative to zero
}
"""Shipped metrics of classes or directions, or relative to zero."""
OF_TORCHMETRICS: dict[str, tuple[Callable[[], Metric], Reference]] = {
    "r2": (theirs.R2Score, r2),
    "explained variance": (theirs.ExplainedVariance, explained_variance),
    "pearson": (theirs.PearsonCorrCoef, pearson),
    "concordance": (theirs.ConcordanceCorrCoef, concordance),
    "rmse": (lambda: theirs.MeanSquaredError(squared=False), lambda p, y: (p - y).square().mean().sqrt()),
    "relative squared error": (theirs.RelativeSquaredError, lambda p, y: 1 - r2(p, y)),
    "spearman": (theirs.SpearmanCorrCoef, lambda p, y: pearson(ranks(p), ranks(y))),
}
OFFSETS = [0.0, 1e3, -1e5, 1e6]
CASTS: dict[str, Callable[[nn.Module], object]] = {
    "unchanged": lambda module: None,
    "half()": lambda module: module.half(),
    "to(bfloat16)": lambda module: module.to(torch.bfloat16),
    "float()": lambda module: module.float(),
}


def shipped() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file in sorted(CONFIGS.rglob("*.yaml")):
        for name, node in (yaml.safe_load(file.read_text()).get("metrics") or {}).items():
            if "_target_" not in node:
                continue  # a key of a metric that the file inherits
            yield f"{file.relative_to(CONFIGS)}: {name}", node


def test_every_shipped_metric_is_classified() -> None:
    assert {node["_target_"] for _, node in shipped()} == SHIFT_INVARIANT.keys() | OTHERS


def check(
    metric: Metric,
    reference: Reference,
    offset: float,
    cast: Callable[[nn.Module], object],
    dense: bool = False,
    rel: float = 1e-6,
) -> None:
    """Assert a metric of float32 labels with mean ``offset`` and standard deviation 3."""
    generator = torch.Generator().manual_seed(0)
    standard = torch.randn(400, generator=generator, dtype=torch.float64)
    labels = (3 * standard + offset).float()
    outputs = (0.6 * standard + 0.5 * torch.randn(400, generator=generator, dtype=torch.float64)).float()
    labels, outputs = (v.view(-1, 1, 2, 2) if dense else v for v in (labels, outputs))
    transform = Standardized()
    transform.observe(labels)
    transform.finish()
    task = Task(nn.Identity(), nn.MSELoss(), {"metric": metric}, target="y", transform=transform)
    cast(task.metrics)
    for part in range(0, len(labels), 50):
        known = slice(part, part + 50)
        task.measure(Outcome(torch.zeros(()), lambda: 50.0, outputs[known], transform(labels[known]), None))
    prediction = outputs.double() * transform.std.double() + transform.mean.double()
    expected = reference(prediction.flatten(), labels.double().flatten())
    assert float(task.metrics.compute()["metric"]) == pytest.approx(float(expected), rel=rel)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("target", SHIFT_INVARIANT)
def test_shipped_metrics_are_exact_far_from_zero(target: str, offset: float, cast: str) -> None:
    dense = target.endswith("DepthAbsoluteError")
    if dense and offset <= 0:
        offset = 40.0 if offset == 0 else -offset  # depths are positive
    check(instantiate({"_target_": target}), SHIFT_INVARIANT[target], offset, CASTS[cast], dense)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", OF_TORCHMETRICS)
def test_metrics_of_torchmetrics_are_exact_far_from_zero(name: str, offset: float, cast: str) -> None:
    make, reference = OF_TORCHMETRICS[name]
    check(make(), reference, offset, CASTS[cast])


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("sizes", [[100], [1, 2, 97], [50, 50]])
def test_r2_equals_its_definition_for_any_unit_and_batches(unit: float, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    y, p = (unit * torch.randn(100, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    metric = R2()
    for part_p, part_y in zip(p.split(sizes), y.split(sizes), strict=True):
        metric.update(part_p, part_y)
    expected = torch.stack([r2(p[:, i], y[:, i]) for i in range(2)]).mean()
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-12, atol=0)


def test_r2_of_constant_targets_is_nan() -> None:
    metric = R2()
    metric.update(torch.tensor([[1.0, 3.0], [2.0, 4.0]]), torch.tensor([[5.0, 3.0], [5.0, 5.0]]))
    torch.testing.assert_close(
        metric.compute(), torch.tensor(0.5, dtype=torch.float64)
    )  # of the second column
    metric.reset()
    metric.update(torch.tensor([1.0]), torch.tensor([2.0]))
    assert metric.compute().isnan()


def test_losses_of_a_split_are_summed_in_float64() -> None:
    task = Task(nn.Identity(), nn.MSELoss(), target="y")
    measured = Measurement(["a"])
    measured.to(torch.bfloat16)
    losses = [1e9, *[1.0] * 1000]
    for loss in losses:
        nothing = torch.zeros(1)
        measured.update({"a": task}, [Outcome(torch.tensor(loss), lambda: 1.0, nothing, nothing, None)])
    assert measured.finish({"a": task})["a", "loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-14)


def test_metrics_stay_on_the_cpu_if_the_device_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    assert home(torch.device("mps")) == torch.device("cpu")
    monkeypatch.setattr(module_of_precision, "_WITHOUT_FLOAT64", ("meta",))
    metrics = Exact({"depth": DepthAbsoluteError(), "mae": theirs.MeanAbsoluteError()})
    metrics.to("meta")
    assert {metric.device.type for metric in metrics.values()} == {"cpu"}
    metrics.update(torch.ones(1, 1, 2, 2).double(), torch.full((1, 1, 2, 2), 3.0).double())
    assert {name: float(value) for name, value in metrics.compute().items()} == {"depth": 2.0, "mae": 2.0}
