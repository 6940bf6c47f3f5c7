"""Heads and other parameters of one task get the gradient of their mean loss, or that of the weighted rows."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGrad, UPGradWeighting
from torchjd.autogram import Engine
from torchjd.autojac import backward, jac_to_grad

from multitask.gradients.features import Features
from multitask.gradients.layerwise import Layerwise
from multitask.module import MultiTaskModule
from multitask.step import Step
from multitask.task.penalty import Penalty
from multitask.task.task import Task
from tests.conftest import Arrays, arrays, build, fit, regression
from tests.unit.weighting.members import make

RATE = 0.1


class Branches(nn.Module):
    """A shared layer, followed by one layer per task."""

    def __init__(self, tasks: list[str]) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.own = nn.ModuleDict({name: nn.Linear(6, 4) for name in tasks})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shared = self.shared(x)
        return {name: torch.tanh(branch(shared)) for name, branch in self.own.items()}


def matrix(module: MultiTaskModule, batch: dict[str, Tensor], rows: str) -> Tensor:
    """Return the losses of the rows, ``[parts, m]``, with their graph."""
    count = len(batch["inputs"])
    index = {"task": torch.zeros(count), "half": torch.arange(count) % 2, "example": torch.arange(count)}[
        rows
    ]
    outcomes = dict(zip(module.by_name, module(batch), strict=True))
    parts = []
    for g in index.unique():
        chosen = index == g
        parts.append(
            torch.stack(
                [
                    nn.functional.mse_loss(outcomes[n].prediction[chosen], outcomes[n].target[chosen])
                    if n in outcomes
                    else module.penalty(n)
                    for n in module.names
                ]
            )
        )
    return torch.stack(parts)


def step_of(module: MultiTaskModule, data: dict[str, Tensor], batches: int = 1) -> tuple[dict, Tensor | None]:
    """Return the gradient of each parameter in one step, and the rows' weights."""
    seen: list[Tensor | None] = []
    module.observers.append(lambda result: seen.append(result.weights))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit(module, Arrays(data, batch_size=len(data["inputs"]) // batches))
    return {n: (before[n] - p.detach()) / RATE for n, p in module.named_parameters()}, seen[0]


def assert_gradients(found: dict[str, Tensor], loss: Tensor, module: MultiTaskModule, part: str) -> None:
    parameters = {n: p for n, p in module.named_parameters() if n.startswith(part)}
    expected = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize(
    ("name", "batches"), [("upgrad", 1), ("upgrad", 2), ("modo", 1), ("modo", 2), ("iwmtl", 1)]
)
def test_heads_get_the_configured_gradient(name: str, branches: bool, weighted: bool, batches: int) -> None:
    combiner = make(name, 3)
    trunk = Branches(["t0", "t1", "t2"]) if branches else None
    module = build(combiner, trunk=trunk, weighted_heads=weighted, accumulate_grad_batches=batches)
    data, reference = arrays(), deepcopy(module)
    found, weights = step_of(module, data, batches)
    losses = matrix(reference, data, combiner.rows)
    assert weights is not None
    total = (weights.view_as(losses) * losses).sum()
    assert_gradients(found, total, reference, "trunk.shared" if branches else "trunk")
    own = total if weighted else losses.mean(0).sum()
    assert_gradients(found, own, reference, "tasks")
    if branches:
        assert_gradients(found, own, reference, "trunk.own")


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("order", [["t0", "t1", "p"], ["p", "t0", "t1"]])
@pytest.mark.parametrize("patterns", [["trunk.*"], ["trunk.*", "tasks.*"], ["tasks.*"]])
@pytest.mark.parametrize(
    ("name", "weighted"), [("upgrad", False), ("modo", True), ("upgrad", True), ("db_mtl", False)]
)
def test_penalties_reach_trunk_and_heads(
    name: str, weighted: bool, patterns: list[str], order: list[str], batches: int
) -> None:
    tasks = {"t0": regression("t0"), "t1": regression("t1"), "p": Penalty(patterns)}
    combiner = make(name, order)
    module = build(
        combiner,
        heads={n: tasks[n] for n in order},  # type: ignore[misc]
        weighted_heads=weighted,
        accumulate_grad_batches=batches,
    )
    data, reference = arrays(2), deepcopy(module)
    found, weights = step_of(module, data, batches)
    losses = matrix(reference, data, combiner.rows)
    penalized = "tasks.*" in patterns
    if name == "db_mtl":
        if not penalized:
            assert_gradients(found, (losses[0] + 1e-8).log().sum(), reference, "tasks")
        return
    assert weights is not None
    total = (weights.view_as(losses) * losses).sum()
    assert_gradients(found, total, reference, "trunk")
    # A head that is penalized belongs to two losses, its own and the penalty.
    assert_gradients(found, total if weighted or penalized else losses.mean(0).sum(), reference, "tasks")


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("name", ["upgrad", "modo", "imtl"])
def test_a_layer_of_two_heads_is_shared(name: str, batches: int) -> None:
    tied = nn.Linear(4, 2)
    heads = {"t0": Task(tied, nn.MSELoss(), target="t0"), "t1": Task(tied, nn.MSELoss(), target="t1")}
    combiner = make(name, 2)
    if name == "imtl":
        with torch.no_grad():
            next(combiner.parameters()).fill_(0.5)
    module = build(combiner, heads=heads, accumulate_grad_batches=batches)
    data, reference = arrays(2), deepcopy(module)
    losses = matrix(reference, data, combiner.rows)
    found, weights = step_of(module, data, batches)
    assert weights is not None
    total = (weights.view_as(losses) * losses).sum()
    assert_gradients(found, total, reference, "trunk")
    assert_gradients(found, total, reference, "tasks")


class Words(nn.Module):
    """An embedding whose weight is also the output layer of a task."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mixing = nn.Linear(4, 4)

    def forward(self, words: Tensor) -> Tensor:
        return torch.tanh(self.mixing(self.embedding(words).mean(1)))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_holds_both_paths_to_a_weight_in_trunk_and_head(weighted: bool) -> None:
    """Compare with torchjd's autojac over the parameters shared by the trunk and the tied head."""
    torch.manual_seed(0)
    trunk = Words()
    word = nn.Linear(4, 7, bias=False)
    word.weight = trunk.embedding.weight
    heads = {"word": Task(word, nn.CrossEntropyLoss(), target="word"), "t0": regression("t0")}
    module = build(
        make("upgrad", 2), trunk=trunk, heads=heads, weighted_heads=weighted, accumulate_grad_batches=1
    )
    generator = torch.Generator().manual_seed(0)
    data = {
        "inputs": torch.randint(7, (24, 3), generator=generator),
        "word": torch.randint(7, (24,), generator=generator),
        "t0": arrays(1)["t0"],
    }
    reference = deepcopy(module)
    found, weights = step_of(module, data)
    outcomes = reference(data)
    shared = list(reference.trunk.parameters())
    backward([outcome.loss for outcome in outcomes], inputs=shared, retain_graph=True)
    jac_to_grad(shared, UPGrad())
    for name, parameter in reference.trunk.named_parameters():
        torch.testing.assert_close(found[f"trunk.{name}"], parameter.grad, rtol=1e-8, atol=1e-10, msg=name)
    assert weights is not None
    factor = float(weights[1]) if weighted else 1.0
    assert_gradients(found, factor * reference(data)[1].loss, reference, "tasks.t0")


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_heads_get_gradients_per_example_if_another_loss_is_absent(absent: int) -> None:
    """The head of the absent loss, which is NaN, gets none."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(3, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
    features = trunk(torch.randn(5, 3))
    means = [head(features).square().flatten() for head in heads]
    losses = torch.stack([loss * (torch.nan if i == absent else 1.0) for i, loss in enumerate(means)], -1)
    present = [i for i in range(3) if i != absent]
    counts = torch.tensor([float(i in present) for i in range(3)])
    expected = torch.autograd.grad(
        sum(means[i].mean() for i in present), list(heads.parameters()), retain_graph=True, allow_unused=True
    )
    step = Step(make("iwmtl", 3).float(), nn.ModuleList([trunk, heads]))
    assert step.backward(losses, counts).present == present
    for p, gradient in zip(heads.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_a_parameter_of_two_losses_that_is_not_shared_gets_their_sum_per_example() -> None:
    torch.manual_seed(0)
    trunk, head = nn.Linear(3, 4), nn.Linear(4, 2)
    losses = head(trunk(torch.randn(5, 3))).square()
    expected = torch.autograd.grad(losses.mean(0).sum(), list(head.parameters()), retain_graph=True)
    model = nn.ModuleList([trunk, head])
    Step(make("iwmtl", 2).float(), model, shared=trunk.parameters()).backward(losses)
    for p, gradient in zip(head.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_a_penalty_has_no_loss_per_example() -> None:
    heads = {"t0": regression("t0"), "p": Penalty()}
    module = build(make("iwmtl", list(heads)), heads=heads)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a penalty has no loss per example"):
        fit(module, Arrays(arrays(1)))


@pytest.mark.parametrize("trunk", ["linear", "in_place"])
def test_iwmtl_equals_the_example_of_torchjd(trunk: str) -> None:
    """Compare ten steps with instance-wise UPGrad by torchjd's engine and ``losses.backward(weights)``."""
    make_trunk = {
        "linear": lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)),
        "in_place": lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 4)),
    }[trunk]
    data = arrays(2, count=40)
    module = build(make("iwmtl", 2), tasks=2, trunk=make_trunk(), weighted_heads=True, engine=Layerwise())
    theirs = deepcopy(module)
    engine, weighting = Engine(theirs.trunk, batch_dim=0), UPGradWeighting()
    optimizer = torch.optim.SGD([*theirs.trunk.parameters(), *theirs.tasks.parameters()], lr=RATE)
    mse = nn.MSELoss(reduction="none")
    for step in range(10):
        chosen = slice(4 * step, 4 * step + 4)
        features = theirs.trunk(data["inputs"][chosen])
        losses = torch.stack(
            [mse(task.head(features), data[name][chosen]).mean(1) for name, task in theirs.by_name.items()],
            dim=1,
        )
        weights = weighting(engine.compute_gramian(losses)).reshape(losses.shape)
        losses.backward(weights)
        optimizer.step()
        optimizer.zero_grad()
    fit(module, Arrays(data, batch_size=4), steps=10)
    expected = dict(theirs.named_parameters())
    for name, value in module.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("name", ["upgrad", "mgda", "modo", "trimmed_mean"])
def test_gradients_at_the_features_of_micro_batches_equal_the_whole_batch(name: str) -> None:
    m = 3
    data = arrays(m)
    whole = build(make(name, m), tasks=m, engine=Features(), accumulate_grad_batches=1)
    parts = build(make(name, m), tasks=m, engine=Features(), accumulate_grad_batches=3)
    exact = build(make(name, m), tasks=m, accumulate_grad_batches=3)
    fit(whole, Arrays(data), steps=3)
    fit(parts, Arrays(data, batch_size=8), steps=3)
    fit(exact, Arrays(data, batch_size=8), steps=3)
    expected = dict(whole.named_parameters())
    for key, value in parts.named_parameters():
        torch.testing.assert_close(value, expected[key], rtol=1e-8, atol=1e-10, msg=key)
    # They differ from gradients at the parameters.
    others = dict(exact.named_parameters())
    assert any(not torch.allclose(value, others[key], rtol=1e-4) for key, value in parts.named_parameters())
