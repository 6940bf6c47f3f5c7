"""Losses of physics-informed networks, their groupings, and their metrics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torchjd.aggregation import UPGrad
from torchjd.autojac import jac

import multitask
from multitask.data.collocation import Collocation
from multitask.metrics import RelativeL2
from multitask.physics.burgers import Burgers
from multitask.physics.kovasznay import Kovasznay
from multitask.physics.problem import INSIDE, Problem
from multitask.pinn import PINN
from multitask.randomness import derived_seed, seeded_apart
from tests.unit.weighting.members import NAMES, make, update

THREE = {"momentum": ["momentum"], "continuity": ["continuity"], "boundary": ["boundary"]}


def batch_of(problem: Problem, split: str = "train", seed: int = 0) -> dict[str, Tensor]:
    points = {INSIDE: 30, "boundary": 12, "initial": 7}
    points = {place: n for place, n in points.items() if place == INSIDE or place in problem.faces}
    data = Collocation(problem, points, steps=2, grids=[[5, 4], [6, 5]], seed=seed)
    return next(iter(data.loader(split, training=split == "train")))


def pinn(problem: Problem, **options: Any) -> PINN:
    torch.manual_seed(0)
    module = PINN(problem, widths=[8, 8], **options).double()
    module.train_with(multitask.UPGrad())
    return module


class Exact(nn.Module):
    """The solution as a network."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, points: Tensor) -> Tensor:
        return self.problem.solution(points)


@pytest.mark.parametrize("problem", [Burgers(nu=0.1), Kovasznay()])
def test_the_solution_has_zero_losses_and_errors(problem: Problem) -> None:
    module = pinn(problem)
    module.net = Exact(problem)
    assert all(loss.detach() < 1e-12 for loss in module.losses(batch_of(problem)).values())  # type: ignore[union-attr]
    module.eval().add_measured(batch_of(problem, "test"))
    metrics = module.measured()
    assert set(metrics) == {(name, "loss") for name in module.names} | {
        (field, metric) for field in problem.fields for metric in ("relative_l2", "mse")
    }
    assert all(value < 1e-12 for value in metrics.values())
    assert module.keys_of(module.names) >= {"val/loss/boundary", "val/u/relative_l2", "val/mean/mse"}


def test_a_loss_is_the_mean_over_points_of_the_sum_of_its_terms() -> None:
    batch = batch_of(Burgers())
    module = pinn(Burgers())
    squares = module.squares(batch)
    assert {term: len(s) for term, s in squares.items()} == {"residual": 30, "boundary": 12, "initial": 7}
    for name, loss in module.losses(batch).items():
        torch.testing.assert_close(loss, squares[name].mean())
    two = pinn(Burgers(), losses={"residual": ["residual"], "conditions": ["boundary", "initial"]})
    conditions = torch.cat([squares["boundary"], squares["initial"]]).mean()
    torch.testing.assert_close(two.losses(batch)["conditions"], conditions)


def test_equations_at_the_same_points_add_up() -> None:
    batch = batch_of(Kovasznay())
    apart = pinn(Kovasznay(), losses=THREE).losses(batch)
    together = pinn(Kovasznay(), losses={"residual": ["momentum", "continuity"], "boundary": ["boundary"]})
    torch.testing.assert_close(together.losses(batch)["residual"], apart["momentum"] + apart["continuity"])  # type: ignore[operator]


def test_conditions_are_mean_squared_errors_over_fields() -> None:
    problem = Kovasznay()
    batch, module = batch_of(problem), pinn(problem)
    points = batch["boundary"].flatten(0, 1)
    expected = nn.functional.mse_loss(module(points), problem.solution(points))
    torch.testing.assert_close(module.losses(batch)["boundary"], expected)


def jacobian(module: PINN, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the losses, and their Jacobian by torchjd."""
    parameters = list(module.net.parameters())
    losses = torch.stack(list(module.losses(batch).values()))  # type: ignore[arg-type]
    rows = jac(losses, parameters, retain_graph=True, parallel_chunk_size=1)
    return losses.detach(), torch.cat([row.flatten(1) for row in rows], 1)


def gradient(module: PINN) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.net.parameters() if p.grad is not None])


METHODS = [name for name in NAMES if getattr(make(name, 5), "rows", "half") == "task"]


@pytest.mark.parametrize("problem", [Burgers(), Kovasznay()])
@pytest.mark.parametrize("name", METHODS)
def test_step_equals_the_method_on_autojacs_rows(name: str, problem: Problem) -> None:
    """Two steps of every Jacobian method on losses with second derivatives."""
    module, names = pinn(problem), list(problem.places())
    step, alone = multitask.Step(make(name, names), module.net), make(name, names)
    layout = [(name, p.numel()) for name, p in module.net.named_parameters()]
    for seed in range(2):
        batch = batch_of(problem, seed=seed)
        losses, J = jacobian(module, batch)
        with seeded_apart(derived_seed("combiner", 0, seed), torch.device("cpu")):
            expected = update(alone, losses, J, layout)
        module.zero_grad()
        step.backward(module.losses(batch))  # type: ignore[arg-type]
        found = gradient(module)
        assert float((found - expected.vector).norm() / expected.vector.norm()) < 1e-12


@pytest.mark.parametrize("problem", [Burgers(), Kovasznay()])
def test_upgrad_of_residuals_equals_torchjds(problem: Problem) -> None:
    module, batch = pinn(problem), batch_of(problem)
    multitask.Step(multitask.UPGrad(), module.net).backward(module.losses(batch))  # type: ignore[arg-type]
    expected = UPGrad()(jacobian(module, batch)[1])
    assert float((gradient(module) - expected).norm() / expected.norm()) < 1e-12


def equations(problem: Problem, values: Tensor, slope: Tensor, curvature: Tensor) -> dict[str, Tensor]:
    """Return the residuals at a point from the fields, ``[f]``, and their derivatives, ``[f, d]`` and ``[f, d, d]``."""
    if isinstance(problem, Burgers):
        return {"residual": slope[0, 1] + values[0] * slope[0, 0] - problem.nu * curvature[0, 0, 0][None]}
    assert isinstance(problem, Kovasznay)
    friction = curvature[:2].diagonal(dim1=1, dim2=2).sum(1) / problem.reynolds
    momentum = slope[:2] @ values[:2] + slope[2] - friction
    return {"momentum": momentum, "continuity": slope[0, 0] + slope[1, 1][None]}


def kernel_traces(module: PINN, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tr J Jᵀ / n per term, from the Jacobian of all residuals at all points by torch.func."""
    parameters = {name: p.detach() for name, p in module.net.named_parameters()}
    problem = module.problem

    def fields(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(module.net, parameters, (point[None],))[0]

    def residuals(parameters: dict[str, Tensor], point: Tensor) -> dict[str, Tensor]:
        slope, curvature = jacrev(fields, 1), jacrev(jacrev(fields, 1), 1)
        return equations(problem, *(of(parameters, point) for of in (fields, slope, curvature)))

    def conditions(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
        return fields(parameters, point) / len(problem.fields) ** 0.5  # the target is constant

    jacobians: dict[str, Any] = vmap(jacrev(residuals), (None, 0))(parameters, batch[INSIDE].flatten(0, 1))
    for face in problem.faces:
        jacobians[face] = vmap(jacrev(conditions), (None, 0))(parameters, batch[face].flatten(0, 1))
    traces = {}
    for term, of_parameters in jacobians.items():
        J = torch.cat([each.flatten(2) for each in of_parameters.values()], 2).flatten(0, 1)
        traces[term] = (J @ J.T).trace() / len(batch[module.places[term]].flatten(0, 1))
    return traces


@pytest.mark.parametrize("problem", [Burgers(), Kovasznay()])
@pytest.mark.parametrize("numbers", [2**22, 500])
def test_traces_equal_those_of_the_kernel_of_all_residuals(
    problem: Problem, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all points at once, and in small parts."""
    monkeypatch.setattr("multitask.pinn._MOST_ELEMENTS", numbers)
    module, batch = pinn(problem, losses=None), batch_of(problem)
    with torch.no_grad():
        found = module.traces(batch)
    for term, expected in kernel_traces(module, batch).items():
        trace, count = found[term]  # type: ignore[misc]
        assert count == len(batch[module.places[term]].flatten(0, 1))
        torch.testing.assert_close(trace, expected, rtol=1e-12, atol=0.0)


def test_a_loss_of_several_terms_has_the_trace_of_all_its_residuals() -> None:
    two = pinn(Burgers(), losses={"residual": ["residual"], "conditions": ["boundary", "initial"]})
    batch = batch_of(Burgers())
    apart = kernel_traces(two, batch)
    trace, count = two.traces(batch)["conditions"]  # type: ignore[misc]
    assert count == 12 + 7
    torch.testing.assert_close(
        trace, (12 * apart["boundary"] + 7 * apart["initial"]) / 19, rtol=1e-12, atol=0.0
    )


def test_a_residual_of_zero_has_a_trace() -> None:
    """The trace is positive although the squared residuals have no gradient."""
    module, batch = pinn(Burgers()), batch_of(Burgers())
    with torch.no_grad():
        module.net[-1].weight.zero_()  # type: ignore[operator, index, union-attr]
    assert module.losses(batch)["boundary"] == 0.0
    trace, _ = module.traces(batch)["boundary"]  # type: ignore[misc]
    torch.testing.assert_close(trace, kernel_traces(module, batch)["boundary"], rtol=1e-12, atol=0.0)
    assert trace > 1.0


def test_evaluation_in_batches_equals_the_whole() -> None:
    problem = Kovasznay()
    data = Collocation(problem, {INSIDE: 30, "boundary": 12}, steps=1, grids=[[5, 4], [6, 5]])
    found = []
    for size in (6, 4):
        module = pinn(problem).eval()
        data.eval_batch_size = size
        for batch in data.loader("test"):
            module.add_measured(batch)
        found.append(module.measured())
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert found[1][key] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "losses",
    [
        {"residual": ["residual"]},
        {"residual": ["residual"], "boundary": ["boundary", "boundary"], "initial": ["initial"]},
        {"residual": ["residual"], "boundary": ["boundary", "start"]},
        {"residual": ["residual", "boundary", "initial"], "nothing": []},
    ],
)
def test_each_term_belongs_to_one_loss(losses: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"model\.losses has the terms .* give each of residual, boundary"):
        PINN(Burgers(), losses=losses)


def test_relative_l2_is_over_all_values() -> None:
    metric = RelativeL2()
    target = torch.linspace(-1, 2, 12).view(6, 2)
    prediction = target + 0.1 * torch.arange(12).view(6, 2)
    for rows in (slice(0, 2), slice(2, 6)):
        metric.update(prediction[rows], target[rows])
    expected = (prediction - target).double().norm() / target.double().norm()
    torch.testing.assert_close(metric.compute(), expected)
    metric.reset()
    metric.update(prediction, torch.zeros_like(target))
    assert metric.compute().isnan()
    with pytest.raises(ValueError, match="RelativeL2"):
        metric.update(prediction, target[:, 0])
