"""Denominators of losses: parts of a batch, weighted by their counts, give the loss of the whole batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from multitask.losses.class_weights import BalancedCrossEntropy
from multitask.losses.counts import count_of
from multitask.task.task import Task

WEIGHT = torch.tensor([1.0, 5.0, 20.0])


class Focal(nn.Module):
    """A mean over examples, with class weights."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        errors = F.cross_entropy(prediction, target, reduction="none")
        factor = self.weight[target] if isinstance(self.weight, Tensor) else self.weight
        return (factor * (1 - (-errors).exp()) ** 2 * errors).mean()


class Inherited(nn.CrossEntropyLoss):
    """Inherits torch's class weights, but not its weighted mean."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.multi_margin_loss(prediction, target, weight=self.weight)


class ListOfWeights(nn.Module):
    def __init__(self, weight: list[float]) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(prediction, target, torch.tensor(self.weight).to(prediction))


class ZeroWhereIgnored(nn.Module):
    """A mean over all values, including ignored ones."""

    ignore_index = 0

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(prediction, target, ignore_index=0, reduction="none").mean()


LOSSES: list[tuple[Any, Any]] = [
    (nn.CrossEntropyLoss(), None),
    (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), None),
    (nn.CrossEntropyLoss(WEIGHT, ignore_index=1), None),
    (nn.NLLLoss(WEIGHT), None),
    (BalancedCrossEntropy(3), None),
    (nn.MultiMarginLoss(weight=WEIGHT), None),
    (Focal(WEIGHT), None),
    (Focal(0.25), None),
    (Focal(WEIGHT.tolist()[0]), None),
    (Inherited(WEIGHT), None),
    (ListOfWeights(WEIGHT.tolist()), "weights"),
    (ZeroWhereIgnored(), "examples"),
]


NO_IMAGES = nn.MultiMarginLoss | Inherited  # torch's loss does not accept images
CASES = [(*case, False) for case in LOSSES] + [
    (*case, True) for case in LOSSES if not isinstance(case[0], NO_IMAGES)
]


@pytest.mark.parametrize(("loss", "how", "dense"), CASES)
def test_parts_weighted_by_their_counts_give_the_whole(loss: Any, how: Any, dense: bool):
    generator = torch.Generator().manual_seed(0)
    shape = (12, 3, 4) if dense else (12, 3)
    prediction = torch.randn(shape, generator=generator)
    target = torch.randint(3, (shape[0], *shape[2:]), generator=generator).sort(0).values
    parts = [slice(0, 5), slice(5, 12)]
    losses = torch.stack([loss(prediction[part], target[part]) for part in parts])
    counts = torch.tensor([float(count_of(loss, how, target[part])) for part in parts])
    torch.testing.assert_close((losses * counts).sum() / counts.sum(), loss(prediction, target))


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.BCEWithLogitsLoss(torch.rand(4), pos_weight=torch.rand(4))]
)
def test_weights_of_columns_do_not_change_the_count(loss: Any):
    target = torch.rand(6, 4)
    assert count_of(loss, None, target) == 24
    known = torch.rand(6, 4) < 0.5
    assert count_of(loss, None, target, known) == known.sum()


def test_count_of_a_batch_is_its_number_of_labelled_examples():
    known = torch.tensor([[True, False], [False, False], [True, True]])
    assert count_of(nn.MSELoss(), "batch", torch.rand(3, 2)) == 3
    assert count_of(nn.MSELoss(), "batch", torch.rand(3, 2), known) == 2


def test_the_count_of_a_task_overrides_the_method_of_its_loss():
    class Events(nn.Module):
        def count(self, target: Tensor) -> Tensor:
            return target.sum()

        def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
            return (prediction * target).sum() / target.sum()

    target = torch.tensor([0.0, 1.0, 1.0])
    assert count_of(Events(), None, target) == 2
    assert count_of(Events(), "examples", target) == 3


def test_attributes_of_other_meanings_are_ignored():
    class Averaged(nn.Module):
        count = torch.tensor(7)
        ignore_index = None
        weight = 0.5

    assert count_of(Averaged(), None, torch.tensor([0, 1, 2])) == 3


@pytest.mark.parametrize(
    ("count", "message"),
    [("images", "count is null, examples, weights, batch, not 'images'"), ("weights", "no attribute weight")],
)
def test_unknown_counts_are_rejected(count: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Task(nn.Linear(3, 1), nn.MSELoss(), count=count)


def test_losses_per_example_keep_their_class_weights():
    task = Task(nn.Identity(), nn.CrossEntropyLoss(WEIGHT), target="y")
    prediction, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    each = task.each(prediction, {"y": target})
    torch.testing.assert_close(each.mean(), F.cross_entropy(prediction, target, WEIGHT))
    alone = F.cross_entropy(prediction, target, WEIGHT, reduction="none")
    torch.testing.assert_close(each / each[0], alone / alone[0])
