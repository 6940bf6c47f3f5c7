"""Losses of any quantity that the model computes: a step equals autograd's rows for every kind of loss."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import Sum
from torchmetrics import MeanAbsoluteError

from multitask.data.muller_brown import MullerBrown, potential
from multitask.module import AnyTask, MultiTaskModule
from multitask.nn.variational import Variational
from multitask.nn.with_losses import WithLosses
from multitask.task.derived import Derivative, PredictionOf
from multitask.task.seen import Seen
from multitask.task.targets import Standardized
from multitask.task.task import Task
from multitask.task.terms import Auxiliary, Distillation, SupervisedContrastive, Term
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build, fit, regression
from tests.unit.weighting.members import make
from tests.unit.weighting.promises import keeping

RATE = 0.1


def agreement(seen: Seen) -> Tensor:
    return (seen.predictions["t0"] - seen.predictions["t1"]).square().mean(1)


def smoothness(seen: Seen) -> Tensor:
    """Return the squared derivative of a prediction per example."""
    return seen.derivative(seen.predictions["t0"][:, 0]).square().sum(1)


def pairs(seen: Seen) -> tuple[Tensor, float]:
    """Return the mean over neighbouring pairs in the batch, which is not defined per example."""
    assert isinstance(seen.features, Tensor)
    return (seen.features[1:] * seen.features[:-1]).sum(1).mean(), len(seen.features) - 1.0


class Drawn(nn.Module):
    """A trunk with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 4), nn.Tanh())

    def forward(self, inputs: Tensor) -> WithLosses:
        features = self.body(inputs)
        return WithLosses(features, {"size": features.square().mean(), "unused": features.sum()})


def kinds() -> dict[str, tuple[nn.Module, dict[str, AnyTask]]]:
    """Return a trunk and tasks for each kind of loss."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
    both: dict[str, AnyTask] = {"t0": regression("t0"), "t1": regression("t1")}
    second = Task(prediction=PredictionOf("t0"), loss=nn.L1Loss(), target="t0", weight=0.3)
    energy = Task(nn.Linear(4, 1), nn.MSELoss(), target="e")
    forces = Task(prediction=Derivative("e", -1.0), loss=nn.MSELoss(), target="inputs")
    return {
        "one output": (trunk, {"second": second, "t0": regression("t0")}),
        "predictions": (trunk, {**both, "x": Term(agreement, weight=0.5)}),
        "features": (trunk, {**both, "x": Term(pairs, count="batch")}),
        "auxiliary": (Drawn(), {"x": Term(Auxiliary("size"), weight=2.0), **both}),
        "derivative": (trunk, {**both, "x": Term(smoothness, derivatives=True)}),
        "forces": (trunk, {"f": forces, "e": energy}),
    }


def data() -> dict[str, Tensor]:
    return arrays(2) | {"e": arrays()["t0"][:, :1]}


def by_hand(module: MultiTaskModule, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses of a kind, written out."""
    inputs = batch["inputs"].clone().requires_grad_()
    output = module.trunk(inputs)
    features = output.features if isinstance(output, WithLosses) else output
    heads = {n: t.head(features) for n, t in module.by_name.items() if t.head is not None}
    mse = nn.functional.mse_loss

    def slope(y: Tensor) -> Tensor:
        return torch.autograd.grad(y.sum(), inputs, create_graph=True)[0]

    formulas: dict[str, Callable[[], Tensor]] = {
        **{name: lambda name=name: mse(heads[name], batch[name]) for name in heads},  # type: ignore[misc]
        "second": lambda: 0.3 * (heads["t0"] - batch["t0"]).abs().mean(),
        "f": lambda: mse(-slope(heads["e"]), batch["inputs"]),
        "x": lambda: {
            agreement: lambda: 0.5 * mse(heads["t0"], heads["t1"]) * 2 / 2,
            pairs: lambda: (features[1:] * features[:-1]).sum() / (len(features) - 1),
            smoothness: lambda: slope(heads["t0"][:, 0]).square().sum() / len(features),
        }.get(module.terms["x"].loss, lambda: 2.0 * features.square().mean())(),
    }
    return {name: formulas[name]() for name in module.names}


def gradient_of_step(module: MultiTaskModule, batch: dict[str, Tensor], **sizes: Any) -> dict[str, Tensor]:
    """Return the gradient of one step, without changing the module."""
    trained = deepcopy(module)
    trained.trainer_keys = module.trainer_keys
    fit(trained, Arrays(batch, **sizes))
    after = dict(trained.named_parameters())
    return {n: (p.detach() - after[n].detach()) / RATE for n, p in module.named_parameters()}


def gradients(losses: dict[str, Tensor], module: MultiTaskModule) -> dict[str, dict[str, Tensor]]:
    named = {n: p for n, p in module.named_parameters() if not n.startswith("weighting")}
    return {
        name: dict(
            zip(
                named,
                torch.autograd.grad(
                    loss, list(named.values()), retain_graph=True, allow_unused=True, materialize_grads=True
                ),
                strict=True,
            )
        )
        for name, loss in losses.items()
    }


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("name", ["sum", "upgrad"])
def test_a_step_equals_the_combined_rows(kind: str, name: str) -> None:
    """Parameters of one loss get its gradient, shared ones the sum of rows weighted by torchjd."""
    trunk, tasks = kinds()[kind]
    weighting: Any = adapt(Sum() if name == "sum" else UPGradWeighting())
    module = build(weighting, trunk=trunk, heads=tasks, accumulate_grad_batches=1)  # type: ignore[arg-type]
    batch = data()
    rows = gradients(by_hand(module, batch), module)
    shared = [n for n in next(iter(rows.values())) if sum(bool(row[n].any()) for row in rows.values()) > 1]
    assert shared
    J = torch.stack([torch.cat([row[n].flatten() for n in shared]) for row in rows.values()])
    weights = torch.ones(len(J), dtype=J.dtype) if name == "sum" else UPGradWeighting()(J @ J.T)
    found = gradient_of_step(module, batch)
    for n, gradient in found.items():
        each = torch.stack([row[n] for row in rows.values()])
        factors = weights if n in shared else torch.ones_like(weights)
        expected = torch.tensordot(factors, each, 1)
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9, msg=n)


@pytest.mark.parametrize("kind", [k for k in kinds() if k not in ("features",)])
@pytest.mark.parametrize("name", ["upgrad", "uw"])
def test_micro_batches_equal_the_whole_batch(kind: str, name: str) -> None:
    trunk, tasks = kinds()[kind]
    heads = {n: tasks[n] for n in tasks}
    found = []
    for size in (24, 7):
        module = build(
            make(name, list(heads)),
            trunk=deepcopy(trunk),
            heads=deepcopy(heads),  # type: ignore[arg-type]
            accumulate_grad_batches=math.ceil(24 / size),
        )
        found.append(gradient_of_step(module, data(), batch_size=size))
    for n, gradient in found[0].items():
        torch.testing.assert_close(found[1][n], gradient, rtol=1e-7, atol=1e-9, msg=n)


@pytest.mark.parametrize("kind", [k for k in kinds() if k not in ("features", "auxiliary")])
def test_losses_of_examples_average_to_those_of_the_batch(kind: str) -> None:
    trunk, tasks = kinds()[kind]
    module = build(make("iwmtl", len(tasks)), trunk=trunk, heads=tasks)  # type: ignore[arg-type]
    for part in ("example", "half"):
        values = {
            n: v[0] if isinstance(v, tuple) else v for n, v in module.losses_by_part(data(), part).items()
        }
        for n, loss in by_hand(module, data()).items():
            torch.testing.assert_close(values[n].mean(), loss, rtol=1e-9, atol=1e-12)
    fit(module, Arrays(data()), steps=2)


@pytest.mark.parametrize("kind", ["features", "auxiliary"])
def test_a_loss_of_the_batch_is_not_defined_per_example(kind: str) -> None:
    trunk, tasks = kinds()[kind]
    module = build(make("iwmtl", len(tasks)), trunk=trunk, heads=tasks)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tasks\.x: the loss is one number per batch"):
        module.losses_by_part(data(), "example")
    losses = module.losses_by_part(data(), "half")
    assert all((value[0] if isinstance(value, tuple) else value).shape == (2,) for value in losses.values())


@pytest.mark.parametrize("name", keeping("batch"))
def test_every_weighting_accepts_terms(name: str) -> None:
    trunk, _ = kinds()["derivative"]
    tasks: dict[str, AnyTask] = {f"t{i}": regression(f"t{i}") for i in range(2)}
    tasks["x"] = Term(smoothness, derivatives=True)
    module = build(make(name, list(tasks)), trunk=trunk, heads=tasks, accumulate_grad_batches=2)  # type: ignore[arg-type]
    found = gradient_of_step(module, data(), batch_size=12)
    assert all(value.isfinite().all() for value in found.values())
    assert any(value.any() for n, value in found.items() if n.startswith("trunk"))


@pytest.mark.parametrize("kind", kinds())
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    trunk, tasks = kinds()[kind]
    whole, first, second = (
        build(make("upgrad", 3), trunk=deepcopy(trunk), heads=deepcopy(tasks), accumulate_grad_batches=1)  # type: ignore[arg-type]
        for _ in range(3)
    )
    batches = Arrays(data(), batch_size=6)
    fit(whole, batches, steps=7)
    fit(first, batches, steps=5).save_checkpoint(tmp_path / "last.ckpt")
    fit(second, batches, steps=7, ckpt_path=tmp_path / "last.ckpt")
    assert all(torch.equal(p, second.get_parameter(n)) for n, p in whole.named_parameters())


@pytest.mark.parametrize("kind", [k for k in kinds() if k != "features"])
def test_a_split_is_measured_under_no_grad(kind: str) -> None:
    trunk, tasks = kinds()[kind]
    module = build(adapt(Sum()), trunk=trunk, heads=tasks).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for start in (0, 10):
            part = {n: v[start : start + (10 if start == 0 else 14)] for n, v in data().items()}
            module.add_measured(part)
        metrics = module.measured()
    for n, loss in by_hand(module, data()).items():
        assert metrics[n, "loss"] == pytest.approx(float(loss.detach()), rel=1e-9)


def test_forces_are_in_the_units_of_their_target() -> None:
    """An exact energy in standard units gives exact forces in the units of the data."""

    class Exact(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return potential(points)[0][:, None]

    splits = MullerBrown(examples=[50, 5, 5]).load()
    batch = {name: values.double() for name, values in dict(splits["train"]).items()}  # type: ignore[call-overload]
    energy = Task(nn.Identity(), nn.MSELoss(), target="energy", transform=Standardized())
    energy.observe(batch)
    energy.transform.finish()  # type: ignore[operator]
    torch.nn.Module.double(energy.transform)
    energy.head = Scaled(energy.transform)
    forces = Task(
        prediction=Derivative("energy", -1.0),
        loss=nn.MSELoss(),
        target="forces",
        metrics={"mae": MeanAbsoluteError()},
    )
    module = MultiTaskModule(Exact(), {"energy": energy, "forces": forces}, weighting=adapt(Sum()))
    with torch.no_grad():
        module.add_measured(batch)
    metrics = module.measured()
    assert metrics["energy", "loss"] < 1e-10
    assert metrics["forces", "mae"] < 1e-3


class Scaled(nn.Module):
    """A head that returns the exact energy in standard units."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, energy: Tensor) -> Tensor:
        return self.transform(energy)


def test_distillation_by_hand() -> None:
    student, teacher = torch.randn(2, 6, 4)
    tasks = {n: Task(nn.Identity(), nn.CrossEntropyLoss(), target="y") for n in ("s", "t")}
    seen = Seen({}, torch.zeros(6, 1), {"s": student, "t": teacher}, tasks)
    p, q = (teacher / 2).log_softmax(1), (student / 2).log_softmax(1)
    expected = 4 * F.kl_div(q, p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(Distillation("s", "t", 2.0)(seen), expected)
    both = expected + 4 * F.kl_div(p, q, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(Distillation("s", "t", 2.0, mutual=True)(seen), both)


def test_supervised_contrastive_by_hand() -> None:
    features, classes = torch.randn(6, 3), torch.tensor([0, 1, 0, 2, 1, 0])
    loss, count = SupervisedContrastive("y", 0.5)(Seen({"y": classes}, features, features, {}))
    unit, expected = F.normalize(features), []
    for i in range(6):
        same = [j for j in range(6) if j != i and classes[j] == classes[i]]
        total = sum(torch.exp(unit[i] @ unit[j] / 0.5) for j in range(6) if j != i)
        if same:
            expected.append(
                -sum(torch.log(torch.exp(unit[i] @ unit[j] / 0.5) / total) for j in same) / len(same)
            )
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert count == 5


def test_the_divergence_of_a_variational_trunk_is_that_of_its_distributions() -> None:
    trunk = Variational(nn.Flatten(), width=3)
    output = trunk.eval()(torch.randn(4, 5))
    mean, log_variance = trunk.distribution(torch.zeros(1, 5)).chunk(2, 1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()), torch.distributions.Normal(0.0, 1.0)
    ).sum(1)
    torch.testing.assert_close(trunk(torch.zeros(1, 5)).losses["kl"], expected)
    assert output.losses["kl"].shape == (4,)
    assert not torch.equal(trunk.train()(torch.ones(4, 5)).features, trunk(torch.ones(4, 5)).features)


def test_circular_and_unknown_predictions_are_rejected() -> None:
    def of(other: str) -> Task:
        return Task(prediction=PredictionOf(other), loss=nn.MSELoss(), target="t0")

    for tasks, message in (
        ({"a": of("b"), "b": of("a")}, "depend on each other"),
        ({"a": of("c")}, "tasks.a: no task 'c' makes predictions; available: a"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiTaskModule(nn.Linear(5, 4), tasks, weighting=adapt(Sum())).double()(data())


def test_a_missing_term_is_absent_from_the_step() -> None:
    """Its value is NaN, and the other losses get the same gradients as without it."""
    trunk, _ = kinds()["predictions"]
    both: dict[str, AnyTask] = {"t0": regression("t0"), "t1": regression("t1")}
    nothing = Term(lambda seen: (seen.predictions["t0"][:0].mean(), 0.0), missing=True)
    found = []
    for tasks in (both, {**both, "x": nothing}):
        module = build(
            make("upgrad", len(tasks)),
            trunk=deepcopy(trunk),
            heads=deepcopy(tasks),  # type: ignore[arg-type]
            accumulate_grad_batches=1,
        )
        found.append(gradient_of_step(module, data()))
    for n, gradient in found[0].items():
        torch.testing.assert_close(found[1][n], gradient, rtol=0, atol=0, msg=n)


class InPlace(nn.Module):
    """A head that changes its features in place."""

    def __init__(self, only_in_training: bool) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.only_in_training = only_in_training

    def forward(self, features: Tensor) -> Tensor:
        if self.training or not self.only_in_training:
            features.mul_(3.0).relu_()
        return self.last(features)


@pytest.mark.parametrize("only_in_training", [False, True])
@pytest.mark.parametrize("name", ["weighted_sum", "upgrad"])
def test_in_place_changes_of_a_head_do_not_affect_the_others(name: str, only_in_training: bool) -> None:
    """For any order of the tasks, also if the head does so only in training, as dropout does."""
    trunk, _ = kinds()["predictions"]
    seen_by: list[Tensor] = []

    def observe(seen: Seen) -> Tensor:
        assert isinstance(seen.features, Tensor)
        seen_by.append(seen.features.detach().clone())
        return (seen.features - 1).square().mean(1)

    torch.manual_seed(1)
    tasks: dict[str, AnyTask] = {
        "t0": Task(InPlace(only_in_training), nn.MSELoss(), target="t0"),
        "t1": regression("t1"),
        "x": Term(observe),
    }
    found = []
    for order in (["t0", "t1", "x"], ["t1", "x", "t0"], ["x", "t1", "t0"]):
        module = build(
            make(name, order),
            trunk=deepcopy(trunk),
            heads={n: deepcopy(tasks[n]) for n in order},  # type: ignore[misc]
            accumulate_grad_batches=1,
        )
        with torch.no_grad():
            module.eval()(data())  # evaluated once before, as at the start of a run
        module.train()
        found.append(gradient_of_step(module, data()))
        torch.testing.assert_close(seen_by[-1], trunk.double()(data()["inputs"]).detach())
    for others in found[1:]:
        for n, gradient in found[0].items():
            torch.testing.assert_close(others[n], gradient, rtol=1e-9, atol=1e-12, msg=n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_of_float64_targets_has_the_precision_of_the_features(dtype: torch.dtype):
    term = Term(lambda seen: (seen.features[:, 0] - seen.batch["y"]).square())
    batch = {"inputs": torch.randn(4, 2, dtype=dtype), "y": torch.randn(4, dtype=torch.float64)}
    seen = Seen(batch, batch["inputs"], 2 * batch["inputs"], {})
    assert term(seen)[0].dtype == term.each(seen).dtype == dtype
