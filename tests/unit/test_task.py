"""A task compares what can be compared, and leaves out what is not labelled."""

import pytest
import torch
from torch import nn
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryAccuracy

from multitask.task import Outcome, Task, split_features

FEATURES = torch.arange(12.0).view(4, 3)


def test_column_targets_are_aligned_rather_than_broadcast() -> None:
    task = Task(nn.Linear(3, 1), nn.MSELoss(), target="y")
    y = torch.randn(4)
    outcome = task(FEATURES, {"y": y})
    expected = (task.head(FEATURES).squeeze(1) - y).square().mean()
    torch.testing.assert_close(outcome.loss, expected)


def test_width_that_does_not_fit_is_refused() -> None:
    task = Task(nn.Linear(3, 2), nn.MSELoss(), target="y")
    with pytest.raises(ValueError, match=r"the head gives \[4, 2\] and the target 'y' holds floats \[4\]"):
        task(FEATURES, {"y": torch.randn(4)})


@pytest.mark.parametrize("dense", [False, True])
def test_missing_classes_enter_nothing(dense: bool) -> None:
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


def test_nothing_labelled_gives_a_zero_that_backward_can_pass() -> None:
    task = Task(nn.Linear(3, 1), nn.MSELoss(), target="y", missing=True)
    outcome = task(FEATURES, {"y": torch.full((4,), torch.nan)})
    outcome.loss.backward()
    assert outcome.count == 0
    assert outcome.loss == 0
    assert torch.equal(task.head.weight.grad, torch.zeros(1, 3))


def test_mask_says_what_is_labelled() -> None:
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


def test_features_for_all_or_one_a_task() -> None:
    assert split_features(FEATURES, ["a", "b"]) == [FEATURES, FEATURES]
    of = {"a": FEATURES, "b": FEATURES + 1}
    assert split_features(of, ["b", "a"]) == [of["b"], of["a"]]
    with pytest.raises(ValueError, match="one for each of the tasks a, c"):
        split_features(of, ["a", "c"])


def test_metrics_that_agree_on_the_first_batch_stay_apart() -> None:
    thresholds = {f"over_{t}": BinaryAccuracy(threshold=t / 100) for t in (50, 90)}
    task = Task(nn.Identity(), nn.BCELoss(), thresholds, target="y")
    for scores, labels in (([0.1, 0.95], [0.0, 1.0]), ([0.7, 0.8], [1.0, 1.0])):
        prediction, target = torch.tensor(scores), torch.tensor(labels)
        task.measure(Outcome(torch.zeros(()), 2.0, prediction, target, None))
    assert {name: float(value) for name, value in task.metrics.compute().items()} == {
        "over_50": 1.0,
        "over_90": 0.5,
    }
