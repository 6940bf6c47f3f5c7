"""One step of a Jacobian method equals TorchJD's autojac in float64, also with micro-batches."""

import gc
import weakref
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchjd.aggregation import ConFIG, GradDrop, MGDAWeighting, UPGrad, UPGradWeighting
from torchjd.autojac import jac_to_grad, mtl_backward
from torchjd.scalarization import IMTLL, STCH, Constant, GeometricMean, Mean

from multitask.gradients.features import Features
from multitask.gradients.task_gradients import TaskGradients
from multitask.module import MultiTaskModule
from multitask.step import Step
from multitask.task.task import Task
from multitask.weighting.adapter import adapt
from multitask.weighting.base import WeightedMethod
from multitask.weighting.wrapper import InstanceWise
from tests.conftest import Arrays, arrays, build, fit, regression


def parameters(module: MultiTaskModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_parameters(
    module: MultiTaskModule, expected: dict[str, torch.Tensor], rtol: float = 1e-10, atol: float = 1e-12
) -> None:
    for name, value in parameters(module).items():
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=atol, msg=name)


def autojac_step(
    module: MultiTaskModule, batch: dict[str, torch.Tensor], rate: float = 0.1
) -> dict[str, torch.Tensor]:
    """Return the parameters after one SGD step with TorchJD's own engine."""
    module = deepcopy(module).train()
    features = module.trunk(batch["inputs"])
    losses = [task(features, batch).loss for task in module.by_name.values()]
    shared = [p for p in module.trunk.parameters() if p.requires_grad]
    mtl_backward(
        losses,
        features=features,
        shared_params=shared,
        tasks_params=[list(t.parameters()) for t in module.tasks.values()],
    )
    jac_to_grad(shared, UPGrad())
    torch.optim.SGD([p for p in module.parameters() if p.grad is not None], lr=rate).step()
    return parameters(module)


TRUNKS = {
    "plain": lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh()),
    "in_place": lambda: nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 4), nn.ReLU(inplace=True)
    ),
    "batch_norm": lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)),
}


@pytest.mark.parametrize("trunk", TRUNKS)
def test_upgrad_step_equals_autojac(trunk: str) -> None:
    data = arrays()
    module = build(adapt(UPGradWeighting()), trunk=TRUNKS[trunk]())
    expected = autojac_step(module, data)
    fit(module, Arrays(data))
    assert_parameters(module, expected)


def test_frozen_and_tied_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)
            self.again.weight = self.first.weight
            self.out.bias.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.again(torch.tanh(self.first(x))))

    data = arrays()
    module = build(adapt(UPGradWeighting()), trunk=Tied())
    expected = autojac_step(module, data)
    fit(module, Arrays(data))
    assert_parameters(module, expected)


def test_unused_parameter_is_unchanged() -> None:
    trunk = nn.Sequential(nn.Linear(5, 4))
    trunk.register_parameter("unused", nn.Parameter(torch.ones(3)))
    data = arrays()
    module = build(adapt(UPGradWeighting()), trunk=trunk)
    fit(module, Arrays(data), steps=2)
    assert torch.equal(module.trunk.unused, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "make", [UPGradWeighting, MGDAWeighting, ConFIG, GeometricMean, lambda: STCH(0.5), lambda: IMTLL(3),
             lambda: Constant(torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64))],
    ids=["upgrad", "mgda", "config", "gls", "stch", "imtl_l", "weighted_sum"],
)  # fmt: skip
def test_micro_batches_equal_the_whole_batch(make) -> None:
    """Also with a smaller last micro-batch, and for nonlinear scalarizations."""
    data = arrays(count=22)
    whole = build(adapt(make()), accumulate_grad_batches=1)
    parts = build(adapt(make()), accumulate_grad_batches=3)
    fit(whole, Arrays(data), steps=2)
    fit(parts, Arrays(data, batch_size=8), steps=2)
    assert_parameters(parts, parameters(whole), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "make", [lambda: Constant(torch.tensor([0.2, 1.0, 3.0])), lambda: IMTLL(3), GeometricMean]
)
def test_scalarizations_agree_in_manual_and_automatic_optimization(make) -> None:
    data = arrays()
    automatic, manual = build(adapt(make())), build(adapt(make()), accumulate_grad_batches=1)
    assert automatic.automatic_optimization
    assert not manual.automatic_optimization
    fit(automatic, Arrays(data), steps=3)
    fit(manual, Arrays(data), steps=3)
    assert_parameters(manual, parameters(automatic))


def test_absent_task_does_not_affect_the_others() -> None:
    data = arrays(count=8)
    without = {name: values for name, values in data.items() if name != "t2"}
    nothing = {**data, "t2": torch.full_like(data["t2"], torch.nan)}
    heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(3)}
    momentum = lambda groups: torch.optim.Adam(groups, lr=0.1)  # noqa: E731
    three = build(adapt(UPGradWeighting()), heads=heads, optimizer=momentum)
    two = build(adapt(UPGradWeighting()), heads=dict(list(deepcopy(heads).items())[:2]), optimizer=momentum)
    two.load_state_dict({k: v for k, v in three.state_dict().items() if ".t2." not in k}, strict=False)
    head = deepcopy(three.by_name["t2"].head)
    fit(three, Arrays(nothing), steps=2)
    fit(two, Arrays(without), steps=2)
    of_three = parameters(three)
    for name, value in parameters(two).items():
        torch.testing.assert_close(of_three[name], value, rtol=1e-10, atol=1e-12, msg=name)
    assert torch.equal(three.by_name["t2"].head.weight, head.weight)


def test_losses_are_means_over_labelled_examples_of_the_window() -> None:
    """Each labelled example has the same weight, however many are in its micro-batch."""
    data = arrays(count=12)
    data["t1"][torch.tensor([0, 1, 2, 3, 5, 9])] = torch.nan
    heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(3)}
    whole = build(adapt(UPGradWeighting()), heads=deepcopy(heads))
    parts = build(adapt(UPGradWeighting()), heads=deepcopy(heads), accumulate_grad_batches=3)
    parts.load_state_dict(whole.state_dict())
    fit(whole, Arrays(data))
    fit(parts, Arrays(data, batch_size=4))
    assert_parameters(parts, parameters(whole))


def test_weighted_heads_get_their_weighted_gradient() -> None:
    """The whole model gets the gradient of the weighted sum of the losses."""
    data = arrays()
    module = build(adapt(UPGradWeighting()), weighted_heads=True)
    reference = deepcopy(module)
    losses = torch.stack([o.loss for o in reference(data)])
    rows = [
        torch.autograd.grad(loss, list(reference.trunk.parameters()), retain_graph=True) for loss in losses
    ]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    weights = UPGradWeighting()(jacobian @ jacobian.T)
    (weights @ losses).backward()
    with torch.no_grad():
        for p in reference.parameters():
            p -= 0.1 * p.grad
    expected = parameters(reference)
    fit(module, Arrays(data))
    assert_parameters(module, expected)


def test_gradients_at_the_features_combine_exactly_with_their_weights() -> None:
    data = arrays()
    module = build(adapt(MGDAWeighting()), engine=Features())
    reference = deepcopy(module)
    features = reference.trunk(data["inputs"])
    losses = [task(features, data).loss for task in reference.by_name.values()]
    rows = torch.stack(
        [torch.autograd.grad(loss, features, retain_graph=True)[0].flatten() for loss in losses]
    )
    weights = MGDAWeighting()(rows @ rows.T)
    shared = list(reference.trunk.parameters())
    found = torch.autograd.grad(torch.stack(losses) @ weights, shared)
    before = [p.detach().clone() for p in shared]
    fit(module, Arrays(data))
    for start, gradient, p in zip(before, found, module.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), start - 0.1 * gradient, rtol=1e-10, atol=1e-12)


def test_single_task_is_plain_gradient_descent() -> None:
    data = arrays(tasks=1)
    jacobian = build(adapt(UPGradWeighting()), tasks=1)
    plain = build(adapt(Constant(torch.ones(1, dtype=torch.float64))), tasks=1)
    fit(jacobian, Arrays(data), steps=3)
    fit(plain, Arrays(data), steps=3)
    assert_parameters(jacobian, parameters(plain))


def test_aggregator_without_weights_runs() -> None:
    data = arrays()
    module = build(adapt(GradDrop()))
    before = parameters(module)
    fit(module, Arrays(data), steps=2)
    assert all(not torch.equal(before[name], value) for name, value in parameters(module).items())


def test_loss_that_is_not_finite_names_task_and_step() -> None:
    data = arrays()
    data["t1"][3] = torch.inf
    with pytest.raises(FloatingPointError, match=r"t1 \(inf\) is not finite at step 0"):
        fit(build(adapt(UPGradWeighting())), Arrays(data))


def test_class_weights_across_micro_batches() -> None:
    """A cross entropy with class weights is a mean over weights, not over examples."""
    generator = torch.Generator().manual_seed(1)
    data = {
        "inputs": arrays()["inputs"],
        "c": torch.randint(3, (24,), generator=generator),
        "t0": arrays()["t0"],
    }
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64))
    heads = {"c": Task(nn.Linear(4, 3), loss, target="c"), "t0": regression("t0")}
    whole = build(adapt(UPGradWeighting()), heads=deepcopy(heads))
    parts = build(adapt(UPGradWeighting()), heads=deepcopy(heads), accumulate_grad_batches=4)
    parts.load_state_dict(whole.state_dict())
    fit(whole, Arrays(data))
    fit(parts, Arrays(data, batch_size=6))
    assert_parameters(parts, parameters(whole))


@pytest.mark.parametrize(
    "weighting", [UPGradWeighting(), UPGrad(), Mean(), GeometricMean()], ids=lambda w: type(w).__name__
)
@pytest.mark.parametrize("add", [False, True], ids=["backward", "add"])
def test_a_step_after_one_that_failed_is_exact(weighting: object, add: bool) -> None:
    net = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)]).double()
    x = torch.randn(5, 3).double()

    def losses(fails: bool = False) -> list[torch.Tensor]:
        features = torch.tanh(net[0](x))
        if fails:
            features.register_hook(fail)
        return [head(features).square().mean() for head in list(net)[1:]]

    def fail(gradient: torch.Tensor) -> None:
        raise RuntimeError("out of memory")

    def gradients(step: Step, counts: list[float]) -> list[torch.Tensor | None]:
        net.zero_grad()
        assert step.backward(losses(), counts).present == [0]
        return [None if p.grad is None else p.grad.clone() for p in net.parameters()]

    step = Step(weighting, net)
    if add:
        step.add(losses(), [4.0, 4.0])
    with pytest.raises(RuntimeError, match="out of memory"):
        step.backward(losses(fails=True), [4.0, 4.0])
    for found, expected in zip(
        gradients(step, [4.0, 0.0]), gradients(Step(weighting, net), [4.0, 0.0]), strict=True
    ):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("weighting", "options", "micro_batches"),
    [
        (UPGradWeighting(), {}, 1),
        (UPGradWeighting(), {"engine": "rows"}, 2),
        (UPGradWeighting(), {"engine": "features"}, 2),
        (UPGradWeighting(), {"memory": "stream"}, 1),
        (InstanceWise(adapt(UPGradWeighting())), {}, 1),
        (Mean(), {}, 1),
        (Mean(), {}, 2),
    ],
)
def test_no_graph_is_held_after_a_step(
    weighting: object, options: dict[str, Any], micro_batches: int
) -> None:
    net = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)])
    step, marks = Step(weighting, net, **options), []

    def losses() -> list[torch.Tensor]:
        features, mark = torch.tanh(net[0](torch.randn(5, 3))), Mark()
        features.grad_fn.metadata["mark"] = mark  # lives as long as the node
        marks.append(weakref.ref(mark))
        each = [head(features).square().flatten() for head in list(net)[1:]]
        return each if isinstance(weighting, InstanceWise) else [loss.mean() for loss in each]

    for _ in range(micro_batches - 1):
        step.add(losses())
    step.backward(losses())
    gc.collect()
    assert [mark() for mark in marks] == [None] * micro_batches


class Mark:
    """Something that a graph can hold."""


@pytest.mark.parametrize("engine", ["rows", "auto", "features"])
@pytest.mark.parametrize("m", [1, 2])
def test_heads_train_if_nothing_is_shared(engine: str, m: int) -> None:
    net = nn.ModuleList([nn.Linear(3, 4), *(nn.Linear(4, 1) for _ in range(m))])
    net[0].requires_grad_(m == 1)  # one task shares its trunk with nobody
    losses = [head(net[0](torch.randn(5, 3))).square().mean() for head in list(net)[1:]]
    trained = [p for p in net.parameters() if p.requires_grad]
    expected = torch.autograd.grad(sum(losses, torch.zeros(())), trained, retain_graph=True)
    assert Step(UPGradWeighting(), net, engine=engine).backward(losses).present == list(range(m))
    for p, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


class Halves(WeightedMethod):
    """The sum of the gradients of both halves."""

    rows = "half"

    def weigh(self, losses: torch.Tensor, gradients: TaskGradients) -> torch.Tensor:
        return torch.ones_like(losses)


@pytest.mark.parametrize("engine", ["rows", "auto", "features"])
def test_a_half_without_labels_leaves_the_other_half_its_gradient(engine: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    counts = torch.tensor([[[2.0, 2.0], [0.0, 2.0]], [[2.0, 6.0], [2.0, 1.0]]])
    batches = torch.randn(2, 4, 3).double()

    def losses(batch: torch.Tensor) -> torch.Tensor:
        features = net[:2](batch)
        return net[2](features).square().view(2, 2, 2).mean(1)

    means = sum(losses(x) * c for x, c in zip(batches, counts, strict=True)) / counts.sum(0)
    expected = torch.autograd.grad(means.sum(), list(net[0].parameters()))
    step = Step(Halves(), net, engine=engine)
    step.add(losses(batches[0]), counts[0])
    step.backward(losses(batches[1]), counts[1])
    for p, gradient in zip(net[0].parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize("wrong", [[], torch.ones(3, 2), torch.ones(3)], ids=["none", "parts", "number"])
def test_a_refused_call_ends_the_step(wrong: Any) -> None:
    net = nn.Linear(3, 2).double()
    step = Step(UPGradWeighting(), net)
    step.add(net(torch.randn(5, 3).double()).square().mean(0))
    with pytest.raises(ValueError, match="losses"):
        step.backward(wrong)
    losses = net(torch.randn(5, 3).double()).square().mean(0)
    found = step.backward(losses).losses
    torch.testing.assert_close(found, losses.detach())


@pytest.mark.parametrize(
    "counts", [-1.0, float("nan"), float("inf"), [1.0, -1.0], torch.tensor([1.0, torch.inf])]
)
@pytest.mark.parametrize("weighting", [UPGradWeighting, Mean])
def test_counts_that_are_no_numbers_are_refused(weighting: Any, counts: Any) -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"counts must be one number ≥ 0 per loss"):
        Step(weighting(), net).backward(net(torch.randn(5, 3)).square().mean(0), counts)


def test_a_parameter_frozen_within_a_step_has_no_gradient() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    step = Step(UPGradWeighting(), net, engine="rows")
    step.add(net(torch.randn(5, 3)).square().mean(0))
    net[0].weight.requires_grad_(False)
    step.backward(net(torch.randn(5, 3)).square().mean(0))
    assert net[0].weight.grad is None
    assert net[0].bias.grad is not None


def test_large_counts_do_not_overflow_half_precision() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).half()
    x = torch.randn(5, 3).half()
    for engine in ("rows", "auto", "features"):
        losses = lambda: net(x).square().mean(0)  # noqa: E731
        step = Step(UPGradWeighting(), net, engine=engine)
        whole = step.backward(losses()).losses
        step.add(losses(), 1)
        result = step.backward(losses(), 1e7)
        assert whole is not None
        torch.testing.assert_close(result.losses, whole.float(), rtol=2e-3, atol=0.0)


def test_a_streamed_step_without_labels_is_none() -> None:
    net = nn.Linear(3, 2)
    step = Step(UPGradWeighting(), net, memory="stream")
    assert step.backward(net(torch.randn(5, 3)).square().mean(0), 0).present == []


def test_an_overflow_skips_the_step_if_the_last_micro_batch_has_no_labels() -> None:
    heads = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])  # nothing is shared
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(heads.parameters())
    before = [p.detach().clone() for p in heads.parameters()]
    step = Step(UPGradWeighting(), heads, scaler=scaler)

    def losses(factor: float) -> list[torch.Tensor]:
        return [head(torch.ones(5, 3)).mean() * factor for head in heads]

    scale = scaler.scale(torch.ones(())).item()
    step.add(losses(1e36), 1)
    unlabelled = [loss.detach() for loss in losses(1.0)]
    assert step.backward(unlabelled, 0).overflow
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < scale
    assert all(torch.equal(p, old) for p, old in zip(heads.parameters(), before, strict=True))


def test_numbers_of_numpy_count() -> None:
    net = nn.Linear(3, 2)
    losses = net(torch.randn(5, 3)).square().mean(0)
    assert Step(Mean(), net).backward(losses, np.int64(3)).present == [0, 1]
