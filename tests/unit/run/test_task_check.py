"""Output of the task check against values computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchjd.scalarization import Mean
from torchmetrics import MeanMetric, MeanSquaredError, PearsonCorrCoef
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy

from multitask.errors import ConfigError
from multitask.module import MultiTaskModule
from multitask.nn.branches import Branches
from multitask.nn.mlp import mlp
from multitask.run.console import summarize
from multitask.run.sharing import Part, compare, parts, parts_of, unobtrusive, users_of
from multitask.run.task_check import check_tasks, check_that_metrics_move, constant_loss, extremes
from multitask.task.targets import Binary, Classes
from multitask.task.task import Outcome, Task
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays

COUNT = 50


def outcome(target: Tensor, prediction: Tensor, known: Tensor | None = None) -> Outcome:
    return Outcome(torch.zeros(()), lambda: 1.0, prediction, target, known)


def task(loss: Any, metric: Any = None, **options: Any) -> Task:
    return Task(nn.Identity(), loss, {} if metric is None else {"m": metric}, target="y", **options)


def test_best_constant_of_a_squared_error_is_the_mean():
    y = 3 + torch.randn(COUNT, 2)
    expected = (y - y.mean(0)).square().mean()
    assert constant_loss(task(nn.MSELoss()), outcome(y, torch.zeros(COUNT, 2))) == pytest.approx(
        float(expected)
    )


def test_best_constant_of_an_absolute_error_is_the_median():
    y = torch.randn(COUNT + 1, 1).exp()
    expected = float((y - y.median()).abs().mean())
    assert constant_loss(task(nn.L1Loss()), outcome(y, torch.zeros(COUNT + 1, 1))) == pytest.approx(
        expected, rel=1e-5
    )


def test_best_constant_of_a_cross_entropy_is_the_entropy():
    y = torch.tensor([0] * 10 + [1] * 30 + [2] * 60)
    entropy = -sum(p * math.log(p) for p in (0.1, 0.3, 0.6))
    assert constant_loss(task(nn.CrossEntropyLoss()), outcome(y, torch.zeros(100, 3))) == pytest.approx(
        entropy, rel=1e-4
    )


def test_best_constant_is_per_channel_and_ignores_missing_values():
    y = torch.randn(4, 2, 3, 3)
    known = torch.rand(4, 2, 3, 3) < 0.5
    means = torch.stack([y[:, c][known[:, c]].mean() for c in range(2)]).view(2, 1, 1)
    expected = (y - means).square()[known].mean()
    found = constant_loss(task(nn.MSELoss(), missing=True), outcome(y, torch.zeros(4, 2, 3, 3), known))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_extremes_are_right_and_wrong_predictions():
    y = torch.tensor([0, 2, 1])
    right, wrong = extremes(task(nn.CrossEntropyLoss()), outcome(y, torch.zeros(3, 3)))
    assert right.argmax(1).tolist() == [0, 2, 1]
    assert wrong.argmax(1).tolist() == [1, 0, 2]
    dense = torch.randint(4, (2, 5, 5))
    right, _ = extremes(task(nn.CrossEntropyLoss()), outcome(dense, torch.zeros(2, 4, 5, 5)))
    assert torch.equal(right.argmax(1), dense)
    numbers = torch.randn(5, 1)
    right, wrong = extremes(task(nn.MSELoss()), outcome(numbers, torch.zeros(5, 1)))
    torch.testing.assert_close(right, numbers, atol=0.01, rtol=0)
    assert (wrong - numbers).abs().max() > 0.1
    assert extremes(task(nn.MSELoss()), outcome(torch.ones(5, 1), torch.zeros(5, 1))) is None


def test_metric_that_does_not_distinguish_right_from_wrong_is_rejected():
    y = torch.arange(COUNT) % 3
    frozen = task(nn.CrossEntropyLoss(), MulticlassAccuracy(num_classes=3, top_k=3, average="micro"))
    with pytest.raises(
        ConfigError, match=r"tasks\.a\.metrics\.m is 1 whether the predictions are right or wrong"
    ):
        check_that_metrics_move("a", frozen, outcome(y, torch.zeros(COUNT, 3)))


def test_accuracy_of_one_hot_targets_is_rejected():
    """Accuracy of scores against one-hot targets is always 0."""
    y = nn.functional.one_hot(torch.arange(COUNT) % 3, 3).float()
    accuracy = MulticlassAccuracy(num_classes=3, average="micro")
    with pytest.raises(
        ConfigError, match=r"is 0 whether .*set tasks\.a\.transform\._target_=multitask\.targets\.Classes"
    ):
        check_that_metrics_move("a", task(nn.CrossEntropyLoss(), accuracy), outcome(y, torch.zeros(COUNT, 3)))
    fixed = task(nn.CrossEntropyLoss(), accuracy, transform=Classes())
    check_that_metrics_move("a", fixed, outcome(y, torch.zeros(COUNT, 3)))


def test_metric_of_exact_equality_is_rejected():
    class Exact(MeanMetric):
        def update(self, prediction: Tensor, target: Tensor) -> None:
            super().update((prediction == target).float())

    with pytest.raises(ConfigError, match="is 0 whether the predictions are right or wrong"):
        check_that_metrics_move(
            "a", task(nn.MSELoss(), Exact()), outcome(torch.randn(9, 1), torch.zeros(9, 1))
        )


@pytest.mark.parametrize(
    ("loss", "metric", "y", "width", "transform"),
    [
        (nn.CrossEntropyLoss(), MulticlassAccuracy(3), torch.arange(COUNT) % 3, 3, None),
        (nn.BCEWithLogitsLoss(), BinaryAUROC(), (torch.arange(COUNT) % 2).float()[:, None], 1, Binary()),
        (nn.MSELoss(), MeanSquaredError(), torch.randn(COUNT, 1), 1, None),
        (nn.MSELoss(), PearsonCorrCoef(), torch.randn(COUNT), 1, None),
    ],
)
def test_metrics_that_distinguish_right_from_wrong_pass(
    loss: Any, metric: Any, y: Tensor, width: int, transform: Any
):
    prediction = torch.zeros(COUNT) if y.ndim == 1 and y.is_floating_point() else torch.zeros(COUNT, width)
    check_that_metrics_move("a", task(loss, metric, transform=transform), outcome(y, prediction))


def joint(**heads: Task) -> MultiTaskModule:
    torch.manual_seed(0)
    trunk = nn.Sequential(Branches(list(heads), mlp([4]), lambda: nn.Linear(4, 3)))
    tasks = heads
    module = MultiTaskModule(trunk, tasks, weighting=adapt(Mean()))
    module({"inputs": torch.randn(2, 5), **{task.target: torch.zeros(2, 1) for task in heads.values()}})
    return module


def regression(name: str, **options: Any) -> Task:
    return Task(nn.Linear(3, 1), nn.MSELoss(), {"mse": MeanSquaredError()}, target=name, **options)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(COUNT, width, generator=generator)
        for name, width in (("inputs", 5), ("a", 1), ("b", 1))
    }


def loaded(arrays: dict[str, Tensor]) -> Arrays:
    data = Arrays(arrays)
    data.setup()
    return data


def test_parts_are_the_largest_modules_with_the_same_users():
    named = {name: nn.Parameter(torch.zeros(2)) for name in ("x.0.w", "x.0.b", "x.1.w", "y.w")}
    used = [("a", "b"), ("a", "b"), ("a",), ("b",)]
    assert parts(named, used) == [Part("x.0", ("a", "b")), Part("x.1", ("a",)), Part("y", ("b",))]
    assert parts(named, [("a",)] * 4) == [Part("x", ("a",)), Part("y", ("a",))]


def test_parts_of_a_model():
    module = joint(a=regression("a"), b=regression("b"))
    _, losses = compare(module, batch())
    found = parts_of(module, losses)
    assert found == [
        Part("trunk.0.shared", ("a", "b")),
        Part("trunk.0.branches.a", ("a",)),
        Part("trunk.0.branches.b", ("b",)),
        Part("tasks.a.head", ("a",)),
        Part("tasks.b.head", ("b",)),
    ]
    assert [users_of(part, 2) for part in found[:2]] == ["all", "a alone"]
    module.tasks["b"].requires_grad_(False)
    _, losses = compare(module, batch())
    assert users_of(parts_of(module, losses)[-1], 2) == "none (frozen or unused)"


def test_summary_names_users(capsys: pytest.CaptureFixture[str]):
    summarize(joint(a=regression("a"), b=regression("b")), batch())
    printed = capsys.readouterr().out
    assert "trunk.0.shared" in printed
    assert "a alone" in printed


def test_tables_show_losses_norms_and_shared_parts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    module = joint(a=regression("a"), b=regression("b", missing=True))
    arrays = batch()
    arrays["b"][: COUNT // 2] = torch.nan
    check_tasks(module, loaded(arrays))
    printed = capsys.readouterr().out
    lines = {line.split()[1]: line for line in printed.splitlines() if line.startswith("│")}
    _, losses = compare(module, arrays)
    for name, share in (("a", "100.0 %"), ("b", "50.0 %")):
        gradients = torch.autograd.grad(
            losses[name], module.trunk.parameters(), retain_graph=True, allow_unused=True
        )
        norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
        for cell in (share, "n×1", "float32", f"{losses[name].item():.4g}", f"{float(norm):.4g}"):
            assert cell in lines[name]
    assert lines["trunk.0.shared"].split()[3::2] == ["MLP", "all", "24", "24"]
    assert lines["trunk.0.branches.a"].split()[5:7] == ["a", "alone"]
    assert "…" not in printed


def test_narrow_terminal_wraps_names_without_truncation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    name = "a_task_whose_name_is_as_long_as_names_of_attributes_are"
    check_tasks(joint(**{name: regression("a")}), loaded(batch()))
    printed = capsys.readouterr().out
    assert "…" not in printed
    for heading in ("labelled", "constant", "gradient", "float32", "parameters"):
        assert heading in printed


def test_task_check_has_no_side_effects():
    module = joint(a=regression("a"), b=regression("b"))
    module.trunk[0].shared.append(nn.BatchNorm1d(4)).append(nn.Dropout())
    module.trunk[0].shared[-2].eval()  # an inner module in evaluation mode
    state = {name: value.clone() for name, value in module.trunk.state_dict().items()}
    before = torch.random.get_rng_state()
    check_tasks(module, loaded(batch()))
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in module.trunk.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.grad is None for p in module.parameters())
    assert not module.trunk[0].shared[-2].training
    assert module.trunk[0].shared[-1].training


class LazyDataset(Dataset[Any]):
    """A data set that reads examples one by one."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["inputs"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.arrays.items()}


def test_splits_on_disk_are_checked():
    module = joint(a=regression("a"), b=regression("b"))
    arrays = batch()
    arrays["b"][-1] = torch.nan
    data = Arrays(arrays)
    data.eval_batch_size = 8
    data.splits = {"train": LazyDataset(arrays)}
    with pytest.raises(ConfigError, match=r"tasks\.b: the target 'b' has 1 NaN among"):
        check_tasks(module, data)


def test_unobtrusive_restores_the_mode_after_an_error():
    module = joint(a=regression("a"))
    with pytest.raises(RuntimeError), unobtrusive(module):
        raise RuntimeError
    assert module.training


def test_metric_that_ignores_predictions_is_rejected():
    class Constant(MeanMetric):
        def update(self, prediction: Tensor, target: Tensor) -> None:
            super().update(target)

    with pytest.raises(ConfigError, match="right or wrong"):
        check_that_metrics_move(
            "a", task(nn.MSELoss(), Constant()), outcome(torch.randn(9, 1), torch.zeros(9, 1))
        )
