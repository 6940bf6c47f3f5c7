"""A task aligns predictions with targets, and excludes missing labels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting
from torchmetrics import MeanSquaredError, Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassJaccardIndex,
)

from multitask.losses.pixels import PixelCrossEntropy
from multitask.metrics import MeanIoU
from multitask.task.seen import split_features
from multitask.task.task import Outcome, Task
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build, fit, regression

FEATURES = torch.arange(12.0).view(4, 3)


def test_column_targets_are_aligned_rather_than_broadcast() -> None:
    task = Task(nn.Linear(3, 1), nn.MSELoss(), target="y")
    y = torch.randn(4)
    outcome = task(FEATURES, {"y": y})
    expected = (task.head(FEATURES).squeeze(1) - y).square().mean()
    torch.testing.assert_close(outcome.loss, expected)


def test_mismatched_width_is_rejected() -> None:
    task = Task(nn.Linear(3, 2), nn.MSELoss(), target="y")
    with pytest.raises(ValueError, match=r"the head gives \[4, 2\], but the target 'y' has floats \[4\]"):
        task(FEATURES, {"y": torch.randn(4)})


@pytest.mark.parametrize("dense", [False, True])
def test_missing_classes_are_excluded(dense: bool) -> None:
    head = nn.Conv1d(3, 5, 1) if dense else nn.Linear(3, 5)
    features = torch.randn(4, 3, 2) if dense else FEATURES
    target = torch.randint(5, (4, 2) if dense else (4,))
    target[1] = -1
    if dense:
        target[2, 0] = -1
    task = Task(head, nn.CrossEntropyLoss(), target="y", missing=True, ignore_index=-1)
    outcome = task(features, {"y": target})
    expected = nn.functional.cross_entropy(head(features), target, ignore_index=-1)
    torch.testing.assert_close(outcome.loss, expected)
    assert outcome.count == task.count({"y": target}) == (target != -1).sum()


def test_loss_without_labels_is_a_differentiable_zero() -> None:
    task = Task(nn.Linear(3, 1), nn.MSELoss(), target="y", missing=True)
    outcome = task(FEATURES, {"y": torch.full((4,), torch.nan)})
    outcome.loss.backward()
    assert outcome.count == 0
    assert outcome.loss == 0
    assert torch.equal(task.head.weight.grad, torch.zeros(1, 3))


def test_mask_selects_the_labelled_examples() -> None:
    task = Task(nn.Linear(3, 2), nn.MSELoss(), target="y", missing=True)
    y, mask = torch.randn(4, 2), torch.tensor([True, False, True, True])
    outcome = task(FEATURES, {"y": y, "mask/y": mask})
    torch.testing.assert_close(outcome.loss, nn.functional.mse_loss(task.head(FEATURES[mask]), y[mask]))


@pytest.mark.parametrize("loss", [nn.MSELoss(), lambda a, b: (a - b).abs().mean()])
def test_losses_of_each_example_average_to_the_loss(loss) -> None:
    task = Task(nn.Linear(3, 2), loss, {"mse": MeanSquaredError()}, target="y", weight=0.5)
    batch = {"y": torch.randn(4, 2)}
    each = task.each(task.head(FEATURES), batch)
    assert each.shape == (4,)
    torch.testing.assert_close(each.mean(), task(FEATURES, batch).loss)


def test_features_shared_or_per_task() -> None:
    assert split_features(FEATURES, ["a", "b"]) == [FEATURES, FEATURES]
    of = {"a": FEATURES, "b": FEATURES + 1}
    assert split_features(of, ["b", "a"]) == [of["b"], of["a"]]
    with pytest.raises(ValueError, match="one for each of the tasks a, c"):
        split_features(of, ["a", "c"])


def test_metrics_that_agree_on_the_first_batch_are_not_merged() -> None:
    thresholds = {f"over_{t}": BinaryAccuracy(threshold=t / 100) for t in (50, 90)}
    task = Task(nn.Identity(), nn.BCELoss(), thresholds, target="y")
    for scores, labels in (([0.1, 0.95], [0.0, 1.0]), ([0.7, 0.8], [1.0, 1.0])):
        prediction, target = torch.tensor(scores), torch.tensor(labels)
        task.measure(Outcome(torch.zeros(()), 2.0, prediction, target, None))
    assert {name: float(value) for name, value in task.metrics.compute().items()} == {
        "over_50": 1.0,
        "over_90": 0.5,
    }


class Focal(nn.Module):
    """A mean over the labelled examples."""

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        error = nn.functional.cross_entropy(
            prediction, target, reduction="none", ignore_index=self.ignore_index
        )
        return ((1 - (-error).exp()) ** 2 * error)[target != self.ignore_index].mean()


IGNORING = {
    "cross-entropy": lambda: nn.CrossEntropyLoss(ignore_index=-1),
    "weighted": lambda: nn.CrossEntropyLoss(
        torch.tensor([1.0, 5.0, 20.0]), ignore_index=-1, label_smoothing=0.1
    ),
    "likelihood": lambda: nn.NLLLoss(ignore_index=-1),
    "focal": lambda: Focal(-1),
    "pixels": lambda: PixelCrossEntropy(-1),
}
SEEN: list[Callable[..., Metric]] = [
    lambda **own: MulticlassAccuracy(3, average="micro", **own),
    lambda **own: MulticlassAUROC(3, **own),
    lambda **own: MulticlassJaccardIndex(3, **own),
    lambda **own: MeanIoU(3, **own),
]


@pytest.mark.parametrize("name", IGNORING)
@pytest.mark.parametrize("metric", SEEN)
@pytest.mark.parametrize("own", [{}, {"ignore_index": -1}])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_labels_ignored_by_the_loss_are_excluded_from_metrics(
    name: str, metric: Callable[..., Metric], own: dict[str, int], dense: bool, missing: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (20, 4) if dense and name != "focal" else (20,)
    scores = torch.randn(20, 3, *shape[1:], generator=generator).log_softmax(1)
    target = torch.randint(-1, 3, shape, generator=generator)
    target[8:12] = -1
    loss = IGNORING[name]()
    # If labels can also be missing, −100 marks them.
    task = Task(nn.Identity(), loss, {"m": metric(**own)}, target="y", missing=missing)
    for part in (slice(0, 8), slice(8, 12), slice(12, 20)):
        outcome = task(scores[part], {"y": target[part]})
        task.measure(outcome)
        if part == slice(8, 12):
            assert float(outcome.loss) == float(outcome.count) == 0.0
        else:
            torch.testing.assert_close(outcome.loss, loss(scores[part], target[part]))
    expected = metric()
    known = target != -1
    expected.update(scores.movedim(1, -1)[known], target[known])
    assert float(task.metrics.compute()["m"]) == pytest.approx(float(expected.compute()), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in IGNORING if name != "pixels"])
def test_a_loss_that_ignores_all_labels_of_a_batch_is_absent(name: str) -> None:
    head = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))
    heads = {"t0": regression("t0"), "a": Task(head, IGNORING[name](), target="y")}
    labels = torch.full((24,), -1)
    labels[:3] = torch.arange(3)
    data = {key: value.float() for key, value in arrays(1).items()} | {"y": labels}
    module = build(adapt(UPGradWeighting()), heads=heads, dtype=torch.float32)
    assert module.labels_can_be_missing
    fit(module, Arrays(data, batch_size=4), steps=6)  # most batches have only ignored labels
    assert all(parameter.isfinite().all() for parameter in module.parameters())
