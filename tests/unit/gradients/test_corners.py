"""Corner cases of a step: unusual losses, parameters and gradients, and side effects."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import Aggregator, UPGrad
from torchjd.scalarization import Constant, GeometricMean

from multitask.step import Step
from tests.unit.gradients.reference import Known, Losses, assert_step, assert_usable, leaves_of


def named(*parameters: Tensor) -> dict[str, Tensor]:
    return {f"p{i}": p for i, p in enumerate(parameters)}


def numbers(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


X = torch.linspace(-1.0, 1.0, 20, dtype=torch.float64).view(5, 4)
Make = Callable[..., Losses]


def split(w: Tensor, u: Tensor, v: Tensor) -> Losses:
    hidden = torch.tanh(X @ w.t())
    first, second = hidden.split(3, 1)
    return {"x": (first * u).sum(), "y": (second * v).square().sum(), "z": hidden.unbind(0)[0].sum()}


def in_place_views(w: Tensor, u: Tensor) -> Losses:
    hidden = torch.tanh(X @ w.t()) * 1
    left, _ = hidden.chunk(2, 1)
    total = (hidden * u).sum()
    changed = hidden.clone()
    changed[:, :2] *= 2
    changed.relu_()
    return {"x": left.sum(), "y": total, "z": changed.square().sum()}


def in_place_after_use(w: Tensor, u: Tensor) -> Losses:
    hidden = X @ w.t()
    first = (hidden.sum() * u).sum()
    hidden.add_(1)
    return {"x": first, "y": (hidden * u).sum(), "z": hidden.square().sum()}


def residual(w: Tensor, b: Tensor, u: Tensor) -> Losses:
    """A boundary loss, and a loss of the second derivative with respect to the inputs."""
    x = X[:, :1].clone().requires_grad_()
    value = torch.tanh(x @ w.t() + b) @ u
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    return {"boundary": (value[0] - 1).square(), "residual": (second[:, 0] + value).square().mean()}


def many(w: Tensor, *heads: Tensor) -> Losses:
    hidden = torch.tanh(X @ w.t())
    return {str(i): (hidden @ head).square().mean() for i, head in enumerate(heads)}


CASES: dict[str, tuple[Make, Sequence[tuple[int, ...]]]] = {
    "scalars of one loss are added": (lambda a, b, c: {"x": (a + b) * c, "y": c * c}, [(), (), ()]),
    "vectors of one loss are added": (
        lambda a, b, c: {"x": ((a + b).square() * c).sum(), "y": (c * c).sum()},
        [(3,), (3,), (3,)],
    ),
    "a gradient that is expanded": (
        lambda a, b, c: {"x": (a + b).sum() * c.sum(), "y": (c * c).sum()},
        [(4, 3), (1,), (1,)],
    ),
    "parameters that are losses": (lambda a, b: {"x": a, "y": b, "z": a * b}, [(), ()]),
    "parameters of one loss that are losses": (lambda a, b: {"x": a, "y": b}, [(), ()]),
    "one parameter is both losses": (lambda a: {"x": a, "y": a}, [()]),
    "one tensor is both losses": (lambda a, b: dict.fromkeys("xy", (a * b).sum()), [(3,), (3,)]),
    "a loss that reaches nothing": (
        lambda a, b: {"x": (a * b).sum(), "none": torch.tensor(2.0).double(), "y": a.sum()},
        [(3,), (3,)],
    ),
    "nothing is shared": (lambda a, b: {"x": a.sum(), "y": b.square().sum()}, [(3,), (3,)]),
    "an empty parameter of each loss": (
        lambda a, b, c: {"x": a.sum() + c.sum(), "y": b.sum() + c.sum()},
        [(0,), (0, 3), (2, 0)],
    ),
    "parts of one tensor": (split, [(6, 4), (3,), (3,)]),
    "changed in place by a head": (in_place_views, [(6, 4), (6,)]),
    "changed in place after use": (in_place_after_use, [(6, 4), (6,)]),
    "derivatives with respect to the inputs": (residual, [(6, 1), (6,), (6,)]),
    "1 loss": (many, [(4, 4), (4,)]),
    "2 losses": (many, [(4, 4), *[(4,)] * 2]),
    "40 losses": (many, [(4, 4), *[(4,)] * 40]),
    "70 losses": (many, [(4, 4), *[(4,)] * 70]),
}


@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("case", CASES)
def test_step_equals_plain_backward_passes(case: str, engine: str) -> None:
    make, shapes = CASES[case]
    torch.manual_seed(0)
    parameters = [numbers(*shape) for shape in shapes]
    step = Step(Known(), named(*parameters), engine=engine)
    for _ in range(2):
        assert_step(step, lambda: make(*parameters), parameters)


class ReturnsSaved(torch.autograd.Function):
    """Returns a saved tensor as its gradient."""

    @staticmethod
    def forward(ctx, p: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (p * x).sum()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def test_clipping_in_place_does_not_change_saved_tensors() -> None:
    a, b, x = numbers(4), numbers(4), X[0].clone()
    Step(Known(), named(a, b)).backward({"x": ReturnsSaved.apply(a, x) + b.sum(), "y": b.square().sum()})
    nn.utils.clip_grad_norm_([a, b], 1e-3)
    assert torch.equal(x, X[0])


class Kept(Aggregator):
    """Returns a row of the Jacobian without a copy, and keeps a reference to it."""

    row: Tensor

    def forward(self, matrix: Tensor) -> Tensor:
        self.row = matrix[0]
        return self.row


@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_gradients_do_not_share_memory_with_an_aggregator(engine: str) -> None:
    a, b, kept = numbers(4), numbers(4), Kept()
    step = Step(kept, named(a, b), engine=engine)
    step.backward([(a * b).sum(), (a * b).square().sum()])
    gradient, row = a.grad, kept.row.clone()
    assert gradient is not None
    gradient.mul_(3)
    assert torch.equal(kept.row, row)
    a.grad = b.grad = None
    step.backward([(a * b).sum() * 5, (a * b).square().sum()])
    torch.testing.assert_close(gradient, b.detach() * 3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def losses_of(model: nn.Module, scale: float = 1.0) -> Losses:
    return {str(i): (out * scale).square().mean() for i, out in enumerate(model(X).unbind(1))}


def own_losses_of(model: nn.Sequential) -> Losses:
    """The first loss uses the weight of the last layer, the second loss its bias."""
    hidden = model[1](model[0](X))
    return {"x": (hidden @ model[2].weight[0]).sum(), "y": (hidden.sum() + model[2].bias.sum()).square()}


@pytest.mark.parametrize("losses", [losses_of, own_losses_of])
def test_gradients_accumulate(losses: Callable[[nn.Module], Losses]) -> None:
    model, other = network(), network()
    step = Step(UPGrad(), model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    step.backward(losses(model))
    step.backward(losses(model))
    Step(UPGrad(), other).backward(losses(other))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert q.grad is not None
        torch.testing.assert_close(p.grad, 0.25 + 2 * q.grad)


def test_a_dense_gradient_is_added_to_a_sparse_one() -> None:
    table, other = nn.Embedding(5, 2, sparse=True).double(), numbers(2)
    step, ids = Step(Known(), {"table": table.weight, "other": other}), torch.tensor([1, 1, 3])
    for _ in range(2):
        step.backward([(table(ids).sum(0) * other).sum(), other.square().sum()])
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    before = table.weight.grad.to_dense()
    step.backward([table(ids).sum(), table(ids).square().sum()])
    row, other_row = (
        torch.autograd.grad(function(table(ids)).sum(), table.weight)[0].to_dense()
        for function in (torch.clone, torch.square)
    )
    torch.testing.assert_close(table.weight.grad.to_dense(), before - row + 2 * other_row)


@pytest.mark.parametrize("make", [UPGrad, lambda: Constant(torch.ones(2).double())])
def test_sparse_gradients_of_micro_batches_add_up(make: Callable[[], object]) -> None:
    table, a = nn.Embedding(5, 2, sparse=True).double(), numbers(2)
    step, parameters = Step(make(), {"table": table.weight, "a": a}), [table.weight, a]

    def losses(*ids: int) -> list[Tensor]:
        return [(table(torch.tensor(ids)) * a).square().sum(1).mean(), a.square().sum()]

    found = []
    for windows in ([[1, 3, 3, 0]], [[1, 3], [3, 0]], [[1], [3], [3], [0]]):
        for p in parameters:
            p.grad = None
        for ids in windows[:-1]:
            step.add(losses(*ids), len(ids))
        step.backward(losses(*windows[-1]), len(windows[-1]))
        found.append([p.grad.to_dense() for p in parameters if p.grad is not None])
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0])


def test_parameters_frozen_and_unfrozen_between_steps() -> None:
    w, k, u, v = numbers(4, 4), numbers(4), numbers(4), numbers(4)

    def losses() -> Losses:
        hidden = torch.tanh(X @ w.t()) * k
        return {"x": (hidden @ u).square().mean(), "y": (hidden @ v).sum()}

    every: list[Tensor] = [w, k, u, v]
    for engine in ("auto", "rows"):
        step = Step(Known(), named(*every), engine=engine)
        for frozen in ([], [w], [], [k, u], [w, k], [w, k, u], [w, k, u, v], []):
            for p in every:
                p.requires_grad_(all(p is not other for other in frozen))
            assert_step(step, losses, [p for p in every if p.requires_grad])


def test_parameters_that_appear_later_need_no_model() -> None:
    a, b, c = numbers(4), numbers(4), numbers(4)
    step = Step(Known())
    assert_step(step, lambda: {"x": (a * b).sum(), "y": a.square().sum()}, [a, b])
    assert_step(step, lambda: {"x": (a * b * c).sum(), "y": (c * a).square().sum()}, [a, b, c])


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_given_parameters_are_shared_and_all_others_get_the_sum(micro_batches: int) -> None:
    w, k, u, v = parameters = [numbers(4, 4), numbers(4), numbers(4), numbers(4)]

    def losses() -> list[Tensor]:
        hidden = torch.tanh(X @ w.t()) * k
        return [(hidden @ u).square().mean(), (hidden @ v).sum()]

    step = Step(Known(), named(*parameters), shared=[w])
    for _ in range(micro_batches - 1):
        step.add(losses())
    step.backward(losses())
    first, second = losses()
    shared = torch.autograd.grad(2 * second - first, w, retain_graph=True)
    for p, gradient in zip(
        parameters, [*shared, *torch.autograd.grad(first + second, [k, u, v])], strict=True
    ):
        torch.testing.assert_close(p.grad, gradient)
    assert_usable(parameters)


def test_weighted_heads_have_the_gradient_of_the_weighted_sum() -> None:
    model = network()
    Step(Known(), model, heads="weighted").backward(own_losses_of(model))
    first, second = own_losses_of(model).values()
    for p, gradient in zip(
        model.parameters(), torch.autograd.grad(2 * second - first, leaves_of(model)), strict=True
    ):
        torch.testing.assert_close(p.grad, gradient)


WEIGHTINGS = [UPGrad, lambda: Constant(torch.ones(3).double()), GeometricMean]


@pytest.mark.parametrize("make", WEIGHTINGS)
@pytest.mark.parametrize("how", ["named", "listed", "stacked", "in two"])
def test_no_gradient_comes_from_an_absent_loss(make: Callable[[], object], how: str) -> None:
    """An absent loss that is NaN must not be multiplied by zero, which would give NaN."""
    found = []
    for absent in (torch.nan, 1.0):
        model = network()
        losses = losses_of(model)
        losses["1"] = losses["1"] * absent
        step, counts = Step(make(), model), [2, 0, 2]
        if how == "in two":
            step.add(losses, counts)
            losses = {**losses_of(model), "1": losses_of(model)["1"] * absent}
        given = list(losses.values())
        result = step.backward({"named": losses, "stacked": torch.stack(given)}.get(how, given), counts)
        assert result.present == [0, 2]
        found.append([p.grad for p in model.parameters()])
    for with_nan, without in zip(*found, strict=True):
        torch.testing.assert_close(with_nan, without)


@pytest.mark.parametrize("make", WEIGHTINGS)
@pytest.mark.parametrize("counts", [0, [0, 0, 0]])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_without_labels_gives_no_gradients(
    make: Callable[[], object], counts: float | list[float], micro_batches: int
) -> None:
    model = network()
    step = Step(make(), model)
    for _ in range(micro_batches - 1):
        step.add(losses_of(model, torch.nan), counts)
    assert step.backward(losses_of(model, torch.nan), counts).present == []
    assert all(p.grad is None for p in model.parameters())
    assert step.backward(losses_of(model)).present == [0, 1, 2]


@pytest.mark.parametrize("make", WEIGHTINGS)
def test_a_micro_batch_without_labels_changes_nothing(make: Callable[[], object]) -> None:
    for order in ([0, 3], [3, 0], [0, 3, 0, 0]):
        model, other = network(), network()
        step = Step(make(), model)
        for count in order[:-1]:
            step.add(losses_of(model, 1.0 if count else torch.nan), count)
        step.backward(losses_of(model, 1.0 if order[-1] else torch.nan), order[-1])
        Step(make(), other).backward(losses_of(other))
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("make", [Known, lambda: Constant(torch.ones(2).double())])
def test_a_loss_scaler_detects_overflow_beside_sparse_gradients(make: Callable[[], object]) -> None:
    a, table = numbers(4), nn.Embedding(5, 2, sparse=True).double()
    every = [a, table.weight]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step, optimizer = Step(make(), named(*every), scaler=scaler), torch.optim.SGD(every, lr=0.1)
    for zero, overflow in ((1.0, False), (0.0, True), (1.0, False)):
        before = [p.detach().clone() for p in every]
        scale = scaler.get_scale()
        optimizer.zero_grad()
        inner = table(torch.tensor([1, 1])).sum()
        result = step.backward([inner * a.sum() + (a.square() * zero).sqrt().sum(), a.square().sum()])
        assert result.overflow is (overflow and isinstance(step.weighting, Known))
        scaler.step(optimizer)
        scaler.update()
        changed = [not torch.equal(p, q) for p, q in zip(every, before, strict=True)]
        assert any(changed) is not overflow
        assert scaler.get_scale() == (scale / 2 if overflow else scale)


def test_a_loss_scaler_scales_complex_gradients() -> None:
    a, spectrum = numbers(3), nn.Parameter(torch.randn(3, dtype=torch.complex128))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = [(spectrum * a).abs().sum(), a.square().sum()]
    (gradient,) = torch.autograd.grad(losses[0], spectrum, retain_graph=True)
    assert not Step(Known(), named(a, spectrum), scaler=scaler).backward(losses).overflow
    torch.testing.assert_close(spectrum.grad, 1024 * gradient)


def test_a_step_has_no_side_effects() -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Linear(4, 40), nn.BatchNorm1d(40), nn.Dropout(0.5), nn.ReLU(), nn.Linear(40, 3)
    ).double()
    trunk[1].eval()
    trunk[4].bias.requires_grad_(False)
    trunk[0].weight.register_hook(lambda gradient: None)
    for rows, engine in (("task", "auto"), ("task", "rows"), ("example", "auto"), ("half", "auto")):
        each = trunk(X).square()
        by_row = {
            "task": each.mean(0),
            "example": each,
            "half": torch.stack([each[::2].mean(0), each[1::2].mean(0)]),
        }
        before = deepcopy(trunk.state_dict())
        random, hooks = torch.get_rng_state(), dict(trunk[0].weight._backward_hooks or {})
        Step(Known(rows), trunk, engine=engine).backward(by_row[rows])  # type: ignore[arg-type]
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(before[key], value) for key, value in trunk.state_dict().items())
        assert [m.training for m in trunk] == [True, False, True, True, True]
        assert [p.requires_grad for p in trunk.parameters()] == [True] * 5 + [False]
        assert dict(trunk[0].weight._backward_hooks or {}) == hooks
        assert trunk[4].bias.grad is None
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
