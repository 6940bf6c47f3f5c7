"""Losses that are not means over their count, or cannot exclude values, are rejected before the first step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchmetrics import CosineSimilarity, MeanAbsoluteError, R2Score
from torchmetrics.classification import MultilabelAUROC

from multitask.errors import ConfigError
from multitask.losses.pixels import DepthL1
from multitask.module import MultiTaskModule
from multitask.run.initialization import initialize
from multitask.task.targets import Binary
from multitask.task.task import Task
from tests.unit.losses.test_counts import LOSSES, Focal

NAN = torch.nan
Arrays = dict[str, Tensor]
INPUTS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(20) % 3


def start(
    out: int, loss: Any, y: Tensor, metric: Any = None, head: nn.Module | None = None, **options: Any
) -> Task:
    metrics = {} if metric is None else {"m": metric}
    task = Task(head or nn.Linear(3, out), loss, metrics, target="y", **options)
    arrays = {"inputs": INPUTS[: len(y)], "y": y}
    initialize(MultiTaskModule(nn.Identity(), {"a": task}), arrays, 0, {"train": arrays})
    return task


class SumOfColumns(nn.Module):
    """A loss that changes if its columns are flattened."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().mean(0).sum()


class BatchDice(nn.Module):
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        p, t = prediction.softmax(1), F.one_hot(target, prediction.shape[1])
        return 1 - (2 * (p * t).sum(0) / (p + t).sum(0)).mean()


class Contrast(nn.Module):
    """Compares each example with the others in the batch."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        likeness = prediction @ prediction.T - 1e6 * torch.eye(len(prediction))
        return -likeness.log_softmax(1)[target[:, None] == target].mean()


class Spread(nn.Module):
    """Gaussian likelihood of targets ``[batch]`` given means and log variances ``[batch, 2]``."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        mean, log_variance = prediction.unbind(1)
        return F.gaussian_nll_loss(mean, target, log_variance.exp())


class Root(nn.Module):
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().mean().sqrt()


class Pairs(nn.Module):
    """Fails on parts of a batch."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        if len(target) < 20:
            raise ValueError("too few")
        return (prediction - target).abs().mean()


@pytest.mark.parametrize(("loss", "how"), LOSSES)
def test_losses_that_are_means_over_their_count_pass(loss: Any, how: Any):
    start(3, loss, CLASSES, count=how)


@pytest.mark.parametrize(
    ("loss", "how", "way_out"),
    [
        (Focal(torch.tensor([1.0, 5.0, 20.0])), "weights", "count=examples"),
        (LOSSES[-2][0], None, "count=weights"),
        (LOSSES[-1][0], None, "count=examples"),
        (BatchDice(), None, "count=batch"),
        (BatchDice(), "examples", "count=batch"),
        (Contrast(), None, "count=batch"),
    ],
)
def test_losses_with_another_count_are_rejected_with_a_remedy(loss: Any, how: Any, way_out: str):
    with pytest.raises(
        ConfigError, match=rf"tasks\.a\.loss: .* is not the mean .* set tasks\.a\.{way_out} \("
    ):
        start(3, loss, CLASSES, count=how)


def test_wrong_count_is_found_despite_constant_predictions():
    head = nn.Linear(3, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    with pytest.raises(ConfigError, match=r"count=weights"):
        start(3, LOSSES[-2][0], CLASSES, head=head)


@pytest.mark.parametrize("loss", [Root(), Pairs()])
def test_functions_of_a_mean_and_losses_that_fail_on_parts_are_rejected(loss: Any):
    y = torch.randn(20, 1)
    few = {"inputs": INPUTS, "y": y}
    task = Task(nn.Linear(3, 1), loss, target="y")
    if isinstance(loss, Pairs):
        with pytest.raises(ConfigError, match="too few"):
            initialize(MultiTaskModule(nn.Identity(), {"a": task}), few, 0, {"train": few})
        return
    with pytest.raises(ConfigError, match=r"set tasks\.a\.count=batch"):
        initialize(MultiTaskModule(nn.Identity(), {"a": task}), few, 0, {"train": few})


@pytest.mark.parametrize("loss", [BatchDice(), Contrast()])
def test_losses_of_whole_batches_pass_with_count_batch(loss: Any):
    start(3, loss, CLASSES, count="batch")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            nn.CrossEntropyLoss(reduction="sum"),
            r"tasks\.a\.loss\.reduction=sum .* set tasks\.a\.loss\.reduction=mean",
        ),
        (nn.CrossEntropyLoss(reduction="none"), r"gives \[8\] and must give one number; .*reduction=mean"),
        (
            lambda p, t: F.cross_entropy(p, t).view(1),
            r"gives \[1\] and must give one number; return the mean",
        ),
        (lambda p, t: (F.cross_entropy(p, t), {}), r"gives a tuple and must give one number"),
    ],
)
def test_losses_that_return_no_mean_are_rejected(loss: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        start(3, loss, CLASSES)


def test_checks_do_not_change_the_state_of_the_loss():
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return (prediction - target).abs().mean()

    loss = Remembering()
    start(1, loss, torch.randn(20, 1))
    assert loss.calls == 0


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("out", "loss", "y", "options"),
    [
        (2, Spread(), torch.randn(20), {}),
        (16, Contrast(), torch.arange(20) % 18, {"count": "batch"}),
    ],
)
def test_predictions_of_another_shape_need_an_option(
    out: int, loss: Any, y: Tensor, options: Any, missing: bool
):
    if missing:
        y = y.clone()
        y[3:6] = NAN if y.is_floating_point() else -100
    start(out, loss, y, loss_checks_shapes=True, missing=missing, **options)
    with pytest.raises(ConfigError, match=r"loss_checks_shapes=true"):
        start(out, loss, y, missing=missing, **options)


def vector() -> Tensor:
    """Return three columns in which two rows have one missing value each."""
    y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 100.0])
    y[15, 1] = y[3, 0] = NAN
    return y


def test_losses_and_metrics_per_column_accept_partial_rows():
    task = start(3, nn.SmoothL1Loss(), vector(), R2Score(), missing=True)
    assert task.metrics["m"].way == "columns"
    start(3, lambda p, t: (p - t).abs().mean(), vector(), MeanAbsoluteError(), missing=True)
    marks = (vector() > 0).long().masked_fill(vector().isnan(), -100)
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0]))
    start(3, weighted, marks, MultilabelAUROC(3), missing=True, transform=Binary())


@pytest.mark.parametrize("loss", [SumOfColumns(), lambda p, t: (1 - F.cosine_similarity(p, t)).mean()])
def test_losses_of_whole_rows_reject_partial_rows(loss: Any):
    message = r"tasks\.a\.loss: 2 examples of the train split have labels for only a part of the target 'y'"
    with pytest.raises(ConfigError, match=message):
        start(3, loss, vector(), missing=True)
    whole = vector()
    whole[15] = whole[3] = NAN
    task = start(3, loss, whole, missing=True)
    with pytest.raises(ValueError, match="cannot exclude single values"):
        task(INPUTS, {"y": vector()})


def test_loss_with_weighted_columns_excludes_values_by_its_reduction():
    class Weighed(nn.Module):
        def __init__(self, reduction: str = "mean") -> None:
            super().__init__()
            self.reduction = reduction

        def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
            values = (prediction - target).square() * torch.tensor([1.0, 2.0, 3.0])
            return values.mean() if self.reduction == "mean" else values

    loss, y = Weighed(), vector()
    task = start(3, loss, y, missing=True)
    known = ~y.isnan()
    expected = Weighed("none")(task.head(INPUTS), y.nan_to_num())[known].mean()
    torch.testing.assert_close(task(INPUTS, {"y": y}).loss, expected)


def test_metrics_of_whole_rows_reject_partial_rows():
    message = r"tasks\.a\.metrics\.m: 2 examples .* CosineSimilarity cannot skip single values"
    with pytest.raises(ConfigError, match=message):
        start(3, nn.MSELoss(), vector(), CosineSimilarity(reduction="mean"), missing=True)


def test_checks_find_rare_labels():
    """The examples of the first batch have no labels."""
    y = torch.full((20, 3), NAN)
    y[3] = torch.randn(3)
    y[4, 1] = 2.0
    with pytest.raises(ConfigError, match=r"tasks\.a\.loss: 1 examples"):
        start(3, SumOfColumns(), y, missing=True)
    assert start(3, nn.MSELoss(), y, R2Score(), missing=True).metrics["m"].way == "columns"


def test_loss_of_whole_examples_rejects_partial_rows():
    class Cox(nn.Module):
        def forward(self, risk: Tensor, target: Tensor) -> Tensor:
            order = target[:, 0].argsort(descending=True)
            risk, event = risk[order, 0], target[order, 1]
            return -((risk - risk.logcumsumexp(0)) * event).sum() / event.sum().clamp(min=1)

    y = torch.stack([torch.rand(20), torch.ones(20)], 1)
    start(1, Cox(), y, loss_checks_shapes=True, count="batch")
    y[3, 1] = NAN
    with pytest.raises(ConfigError, match="a loss with loss_checks_shapes=true takes whole examples"):
        start(1, Cox(), y, loss_checks_shapes=True, count="batch", missing=True)


def test_losses_that_ignore_pixels_accept_missing_values():
    y = torch.rand(8, 1, 4, 4) + 0.5
    y[2, 0, 1] = NAN
    task = Task(nn.Conv2d(3, 1, 1), DepthL1(), target="y", missing=True)
    arrays = {"inputs": torch.randn(8, 3, 4, 4), "y": y}
    initialize(MultiTaskModule(nn.Identity(), {"a": task}), arrays, 0, {"train": arrays})
    assert task.count(arrays) == 8 * 16 - 4


@pytest.mark.parametrize("rows", [1, 20])
def test_metrics_are_checked_despite_a_single_label(rows: int):
    y = torch.randn(rows, 2)
    y[1:] = NAN
    start(2, nn.MSELoss(), y, R2Score(), missing=rows > 1)
    with pytest.raises(ConfigError, match=r"gives \[2\] and must give one number"):
        start(2, nn.MSELoss(), y, R2Score(multioutput="raw_values"), missing=rows > 1)


def test_loss_that_cannot_exclude_single_values_is_rejected():
    y = (torch.randn(20, 4) > 0).float()
    y[::2, 1] = NAN
    with pytest.raises(
        ConfigError, match=r"tasks\.a: .*MultiLabelSoftMarginLoss has no number for each value.*mask/"
    ):
        start(4, nn.MultiLabelSoftMarginLoss(), y, missing=True)


class LeavesOut(nn.Module):
    """The mean over the targets that differ from a mark."""

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        known = target != self.mark
        return (prediction - target)[known].square().mean() if known.any() else 0 * prediction.sum()


def arrays_with(mark: float, times: int, columns: int = 1, rows: int = 400, labels: bool = False) -> Arrays:
    """Return examples of which a few, beyond the first batch, have a mark as their target."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(rows, columns, generator=generator)
    y = 3.0 + (y > 0).float() if labels else y
    y[torch.randperm(rows - 50, generator=generator)[:times] + 50, 0] = mark
    return {"inputs": torch.randn(rows, 3, generator=generator), "y": y}


MARKED = [
    (mark, times, columns, labels)
    for mark in (0.0, -1.0, -999.0, 50.0)
    for times, columns in ((1, 1), (2, 1), (3, 4))
    for labels in (False, True)
    # A single mark cannot be told from hundreds of distinct targets.
    if (mark, times, labels) != (-1.0, 1, False)
]


@pytest.mark.parametrize(("mark", "times", "columns", "labels"), MARKED)
@pytest.mark.parametrize("missing", [False, True])
def test_loss_that_ignores_a_rare_mark_is_rejected(
    mark: float, times: int, columns: int, labels: bool, missing: bool
):
    arrays = arrays_with(mark, times, columns, labels=labels)
    if missing:
        arrays["y"][::3, -1] = arrays["y"][::3, -1].where(arrays["y"][::3, -1] == mark, NAN)
    splits = {
        "train": {k: v[:200] for k, v in arrays.items()},
        "test": {k: v[200:] for k, v in arrays.items()},
    }
    few = {k: v[:8] for k, v in arrays.items()}
    for loss, fits in ((LeavesOut(mark), False), (nn.MSELoss(), True)):
        task = Task(nn.Linear(3, columns), loss, target="y", missing=missing)
        if fits:
            initialize(MultiTaskModule(nn.Identity(), {"a": task}), few, 0, splits)
            continue
        with pytest.raises(ConfigError, match=r"tasks\.a\.loss"):
            initialize(MultiTaskModule(nn.Identity(), {"a": task}), few, 0, splits)


def test_whole_batch_is_searched_if_no_split_is_in_memory():
    arrays = arrays_with(0.0, 1, rows=100)
    with pytest.raises(ConfigError, match=r"tasks\.a\.count=batch"):
        initialize(
            MultiTaskModule(nn.Identity(), {"a": Task(nn.Linear(3, 1), LeavesOut(0.0), target="y")}),
            arrays,
            0,
            {"train": None},
        )


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("loss", "out", "y"),
    [
        (nn.MSELoss(reduction="sum"), 4, torch.randn(20, 4)),
        (nn.CrossEntropyLoss(reduction="sum"), 3, CLASSES),
        (Root(), 4, torch.randn(20, 4)),
        (BatchDice(), 3, CLASSES),
    ],
)
def test_wrong_count_is_found_with_batches_of_one(
    in_memory: bool, missing: bool, loss: Any, out: int, y: Tensor
):
    arrays = {"inputs": INPUTS, "y": y}
    task = Task(nn.Linear(3, out), loss, target="y", missing=missing)
    with pytest.raises(ConfigError, match=r"tasks\.a\.loss"):
        initialize(
            MultiTaskModule(nn.Identity(), {"a": task}),
            {k: v[:1] for k, v in arrays.items()},
            0,
            {"train": arrays if in_memory else None},
        )


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), nn.PoissonNLLLoss()])
def test_means_pass_on_one_example(loss: Any):
    arrays = {"inputs": INPUTS[:1], "y": torch.rand(1, 4)}
    initialize(
        MultiTaskModule(nn.Identity(), {"a": Task(nn.Linear(3, 4), loss, target="y")}),
        arrays,
        0,
        {"train": arrays},
    )
