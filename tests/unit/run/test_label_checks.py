"""Invalid labels and metrics are rejected before the first step, in one message with a remedy."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, R2Score
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy

from multitask.errors import ConfigError
from multitask.losses.pixels import DepthL1, PixelCrossEntropy
from multitask.module import MultiTaskModule
from multitask.run.initialization import initialize
from multitask.run.label_checks import labelled_share
from multitask.task.targets import Binary
from multitask.task.task import Task

INPUTS = torch.randn(20, 3)
NAN = torch.nan


def task(out: int, loss: nn.Module, metric: Any = None, **options: Any) -> Task:
    return Task(nn.Linear(3, out), loss, {} if metric is None else {"m": metric}, target="y", **options)


def start(task: Task, y: Tensor, inputs: Tensor = INPUTS) -> None:
    start_with(task, {"inputs": inputs, "y": y})


def start_with(task: Task, arrays: dict[str, Tensor], trunk: nn.Module | None = None) -> None:
    initialize(MultiTaskModule(trunk or nn.Identity(), {"a": task}), arrays, 0, {"train": arrays})


def classes(wrong: int) -> Tensor:
    """Return classes 0 to 2, with one wrong class beyond the first batch."""
    y = torch.arange(20) % 3
    y[15] = wrong
    return y


@pytest.mark.parametrize("wrong", [3, -1])
def test_class_out_of_range_is_found_anywhere_in_the_split(wrong: int):
    message = rf"tasks\.a: the target 'y' has the class {wrong} in the train split .* scores for 0 to 2; "
    with pytest.raises(ConfigError, match=rf"{message}.*ignore_index={wrong}"):
        start(task(3, nn.CrossEntropyLoss()), classes(wrong))


def test_marks_of_missing_labels_are_not_classes():
    start(task(3, nn.CrossEntropyLoss(), missing=True, ignore_index=-1), classes(-1))
    start(task(3, nn.CrossEntropyLoss(ignore_index=-1)), classes(-1))
    start(task(3, nn.CrossEntropyLoss(), missing=True), classes(-100))


def test_default_ignore_index_of_torch_is_rejected_as_a_class():
    with pytest.raises(ConfigError, match=r"class -100.*missing=true"):
        start(task(3, nn.CrossEntropyLoss()), classes(-100))


def test_dense_classes_with_a_loss_that_ignores_an_index():
    images = torch.randn(6, 3, 4, 4)
    y = torch.randint(2, (6, 4, 4))
    y[5, 0] = -1
    dense = Task(nn.Conv2d(3, 2, 1), PixelCrossEntropy(ignore_index=-1), target="y")
    start(dense, y, images)
    y[5, 0] = 2
    with pytest.raises(ConfigError, match="class 2"):
        start(dense, y, images)


def test_nan_targets_require_missing():
    y = torch.randn(20, 1)
    y[17] = NAN
    with pytest.raises(
        ConfigError,
        match=r"tasks\.a: the target 'y' has 1 NaN among the 20 values of the train split; set missing=true",
    ):
        start(task(1, nn.MSELoss()), y)
    start(task(1, nn.MSELoss(), missing=True), y)


def test_infinite_targets_are_rejected_despite_missing():
    y = torch.randn(20, 1)
    y[16], y[17] = NAN, torch.inf
    with pytest.raises(ConfigError, match="infinite"):
        start(task(1, nn.MSELoss(), missing=True), y)


def test_nan_depth_is_accepted_if_the_loss_ignores_it():
    images, y = torch.randn(4, 3, 2, 2), torch.rand(4, 1, 2, 2) + 1
    y[3] = NAN
    start(Task(nn.Conv2d(3, 1, 1), DepthL1(), target="y"), y, images)


def test_binary_losses_require_zeros_and_ones():
    y = torch.randint(2, (20,)) * 2 - 1
    with pytest.raises(ConfigError, match="has -1 in the train split and BCEWithLogitsLoss needs 0 and 1"):
        start(task(1, nn.BCEWithLogitsLoss(), transform=Binary()), y)
    start(task(1, nn.BCEWithLogitsLoss(), transform=Binary()), (y + 1) // 2)


@pytest.mark.parametrize(("out", "shape"), [(1, (20,)), (2, (20, 2)), (1, (20, 1))])
def test_integer_targets_of_a_regression_are_rejected(out: int, shape: tuple[int, ...]):
    with pytest.raises(ConfigError, match=r"holds integers .*multitask\.targets\.Binary.*needs floats"):
        start(task(out, nn.MSELoss()), torch.ones(shape, dtype=torch.int64))


def test_split_without_labels_is_rejected():
    with pytest.raises(ConfigError, match="the target 'y' has no label in the train split"):
        start(task(1, nn.MSELoss(), missing=True), torch.full((20, 1), NAN))


def test_metric_incompatible_with_the_predictions_is_rejected():
    with pytest.raises(ConfigError, match=r"tasks\.a\.metrics\.m cannot take predictions \[8, 3\]"):
        start(task(3, nn.CrossEntropyLoss(), MulticlassAccuracy(num_classes=5)), classes(0))


def test_metric_of_several_numbers_is_rejected():
    with pytest.raises(ConfigError, match=r"tasks\.a\.metrics\.m gives \[2\] and must give one number"):
        start(task(2, nn.MSELoss(), MeanSquaredError(num_outputs=2)), torch.randn(20, 2))
    labels = torch.randint(2, (20, 2))
    with pytest.raises(ConfigError, match=r"gives \[2\]"):
        start(
            task(2, nn.BCEWithLogitsLoss(), MultilabelAccuracy(2, average=None), transform=Binary()), labels
        )


def test_checks_do_not_update_the_metrics():
    checked = task(1, nn.MSELoss(), R2Score())
    start(checked, torch.randn(20, 1))
    assert not checked.metrics["m"].update_called


def test_labelled_share():
    y = torch.tensor([[1.0, NAN], [NAN, NAN]])
    assert labelled_share(task(2, nn.MSELoss(), missing=True), {"y": y}) == 0.25
    assert labelled_share(task(2, nn.MSELoss()), {"y": y}) == 1.0
    assert (
        labelled_share(task(3, PixelCrossEntropy(ignore_index=-1)), {"y": torch.tensor([[[0, -1], [1, 2]]])})
        == 0.75
    )
    assert labelled_share(task(1, DepthL1()), {"y": torch.tensor([[[[0.0, 2.0]]], [[[1.0, 1.0]]]])}) == 0.75
    weighted = PixelCrossEntropy(ignore_index=-1, weight=[1.0, 2.0, 3.0])
    assert labelled_share(task(3, weighted), {"y": torch.tensor([[[0, -1]]])}) is None


def test_float_classes_are_rejected():
    with pytest.raises(ConfigError, match="or give classes as integers"):
        start(task(3, nn.CrossEntropyLoss()), classes(0).float())


def test_unused_or_misshapen_mask_is_rejected():
    arrays = {"inputs": INPUTS, "y": torch.randn(20, 1), "mask/y": torch.rand(20) < 0.5}
    start_with(task(1, nn.MSELoss(), missing=True), arrays)
    with pytest.raises(ConfigError, match=r"the data has mask/y, .* set tasks\.a\.missing=true"):
        start_with(task(1, nn.MSELoss()), arrays)
    with pytest.raises(ConfigError, match=r"mask/y is \[20, 2\] and the target 'y' \[20, 1\]"):
        start_with(task(1, nn.MSELoss(), missing=True), arrays | {"mask/y": torch.ones(20, 2).bool()})


class Imputed(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.nan_to_num()


def test_non_finite_inputs_are_rejected_unless_the_trunk_handles_them():
    arrays = {"inputs": INPUTS.clone(), "y": torch.randn(20, 1)}
    arrays["inputs"][17, 1] = NAN
    start_with(task(1, nn.MSELoss()), arrays, Imputed())
    with pytest.raises(
        ConfigError, match="inputs of 1 of 20 examples of the train split are NaN or infinite"
    ):
        start_with(task(1, nn.MSELoss()), arrays)


def test_integer_inputs_of_float_layers_are_rejected():
    arrays = {"inputs": torch.ones(20, 3, dtype=torch.int64), "y": torch.randn(20, 1)}
    with pytest.raises(ConfigError, match=r"type int64; all layers but embeddings want floats"):
        start_with(task(1, nn.MSELoss()), arrays, nn.Linear(3, 3))


def test_first_examples_of_a_split_on_disk_are_checked():
    few = {"inputs": INPUTS, "y": torch.full((20,), 3)}
    with pytest.raises(ConfigError, match="the target 'y' has the class 3 in the train split"):
        initialize(
            MultiTaskModule(nn.Identity(), {"a": task(3, nn.CrossEntropyLoss())}), few, 0, {"train": [few]}
        )  # type: ignore[dict-item]


class Slope(nn.Module):
    """A head that differentiates without a graph."""

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(inputs.square().sum(), inputs)
        return slope[:, :1]


@pytest.mark.parametrize("where", ["trunk", "head"])
def test_derivatives_without_grad_mode_are_rejected(where: str) -> None:
    arrays = {"inputs": torch.randn(8, 3), "y": torch.randn(8)}
    trunk = Slope() if where == "trunk" else nn.Identity()
    head = Slope() if where == "head" else nn.Identity()
    with pytest.raises(ConfigError, match=r"; take derivatives inside torch\.enable_grad\(\)\.$"):
        initialize(
            MultiTaskModule(trunk, {"a": Task(head, nn.MSELoss(), target="y")}), arrays, 0, {"train": arrays}
        )
