"""Rows of several micro-batches and processes."""

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import TrimmedMean, UPGradWeighting

from multitask.benchmark.timing import peak_mib
from multitask.gradients import rows as rows_module
from multitask.gradients.layerwise import Layerwise
from multitask.gradients.rows import RowGradients, Rows, SeparateRows
from multitask.gradients.task_gradients import MicroBatch
from multitask.step import Step
from tests.unit.gradients.reference import leaves_of
from tests.unit.gradients.rows_of import assert_same, losses_of, mlp, naive, pulls_of, random_cotangents


def test_micro_batches_are_averaged_and_buffers_reused() -> None:
    trunk, rows = mlp().double(), Rows()
    for sizes in ([4], [4, 2, 7], [3, 3]):
        rows.clear()
        J, weights = torch.zeros(()), 0.0
        for size in sizes:
            outputs = [trunk(torch.randn(size, 40).double())]
            cotangents = random_cotangents(outputs, 3)
            weight = size / sizes[0]
            J = J + naive(outputs, cotangents, leaves_of(trunk)) * weight
            pulls = pulls_of(losses_of(outputs, cotangents))
            rows.add(MicroBatch(pulls, leaves_of(trunk), [weight] * 3))
            weights += weight
        assert_same(rows.gradients(range(3), [1 / weights] * 3), J / weights, leaves_of(trunk))


def test_a_row_absent_from_a_micro_batch_keeps_its_sum() -> None:
    trunk, rows = mlp().double(), Rows()
    outputs = [trunk(torch.randn(4, 40).double())]
    cotangents = random_cotangents(outputs, 2)
    J = naive(outputs, cotangents, leaves_of(trunk))
    pulls = pulls_of(losses_of(outputs, cotangents))
    pulls.rows = [0]
    rows.add(MicroBatch(pulls, leaves_of(trunk), [1.0, 0.0]))
    pulls = pulls_of(losses_of([trunk(torch.randn(4, 40).double())], cotangents))
    pulls.rows = [1]
    rows.add(MicroBatch(pulls, leaves_of(trunk), [0.0, 1.0]))
    found = rows.gradients([0, 1], [1.0, 1.0]).jacobian()
    torch.testing.assert_close(found[0], J[0])
    assert found[1].any()


def test_columns_of_new_parameters_start_at_zero() -> None:
    first, second, rows = nn.Linear(3, 2).double(), nn.Linear(3, 2).double(), Rows()
    outputs = [first(torch.randn(4, 3).double())]
    cotangents = random_cotangents(outputs, 2)
    J = naive(outputs, cotangents, leaves_of(first))
    pulls = pulls_of(losses_of(outputs, cotangents))
    rows.add(MicroBatch(pulls, leaves_of(first), [1.0, 1.0]))
    every = [*leaves_of(second), *leaves_of(first)]
    rows.lay_out(every, [(1, second.weight, torch.ones_like(second.weight))])
    pulls.rows = []
    rows.add(MicroBatch(pulls, every, [0.0, 0.0]))
    found = rows.gradients([0, 1], [1.0, 1.0]).jacobian()
    torch.testing.assert_close(found[:, 8:], J)
    assert torch.equal(found[:, :8], torch.tensor([[0.0] * 8, [1.0] * 6 + [0.0] * 2]).double())


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_each_row_is_sent_before_the_next_is_differentiated(
    micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sent: list[Tensor] = []

    class Sent:
        def __init__(self, rows: Tensor, parameters: list[nn.Parameter]) -> None:
            self._rows = rows

        def send(self, i: int) -> None:
            events.append(f"send {i}")
            sent.append(self._rows[i].clone())

        def choose(self, rows: list[int]) -> None:
            self.rows = self._rows[rows]

    monkeypatch.setattr(rows_module, "ShardedRows", Sent)
    monkeypatch.setattr(rows_module, "processes", lambda: 2)
    trunk, rows = nn.Linear(4, 3).double(), Rows()
    for number in range(micro_batches):
        outputs = [trunk(torch.randn(2, 4).double())]
        cotangents = random_cotangents(outputs, 3)
        outputs[0].register_hook(lambda gradient: events.append("differentiate"))
        pulls = pulls_of(losses_of(outputs, cotangents))
        last = [0.5] * 3 if number == micro_batches - 1 else None
        rows.add(MicroBatch(pulls, leaves_of(trunk), [1.0] * 3, last))
    found = rows.gradients([0, 1, 2], [1.0] * 3).rows
    assert events == ["differentiate"] * (3 * (micro_batches - 1)) + [
        event for i in range(3) for event in ("differentiate", f"send {i}")
    ]
    # Nothing was written into a row after it was sent, and the width is even.
    assert torch.equal(torch.stack(sent), found)
    assert found.shape == (3, 16)
    assert not found[:, 15:].any()


def test_large_rows_take_no_memory_besides_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three rows are in memory while the whole graph is needed, also in later steps."""

    def peak(large: int) -> float:
        monkeypatch.setattr(rows_module, "_LARGE", large)
        net = nn.ModuleList([nn.Linear(1024, 1024), *(nn.Linear(1024, 1) for _ in range(3))])
        inputs, step = torch.randn(2048, 1024), Step(UPGradWeighting(), net, engine="rows")

        def steps() -> None:
            for _ in range(2):
                net.zero_grad()
                features = torch.tanh(net[0](inputs))
                step.backward([head(features).square().mean() for head in list(net)[1:]])

        return peak_mib(steps)

    row = 1025 * 1024 * 4 / 2**20
    assert peak(0) < peak(2**40) - 0.9 * row


@pytest.mark.parametrize("reads", [False, True])
def test_rows_of_methods_that_read_them_form_a_matrix(reads: bool) -> None:
    net = nn.ModuleList([nn.Linear(1024, 1024), nn.Linear(1024, 1), nn.Linear(1024, 1)])
    step = Step(TrimmedMean(0) if reads else UPGradWeighting(), net, engine="rows")
    features = net[0](torch.randn(4, 1024))
    gradients = step.backward([head(features).square().mean() for head in list(net)[1:]]).gradients
    assert gradients is not None
    assert isinstance(gradients._gradients, RowGradients if reads else SeparateRows)


@pytest.fixture
def separate(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of single batches stay separate."""
    monkeypatch.setattr(rows_module, "_LARGE", 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gramian_of_many_blocks_is_summed_precisely(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_SIDE_BY_SIDE", 64)
    parameter = nn.Parameter(torch.zeros(2**16, dtype=dtype))
    rows = [[torch.full_like(parameter, 0.01)], [torch.full_like(parameter, -0.02)]]
    found = SeparateRows(rows, [parameter]).gramian()
    J = torch.stack([row[0] for row in rows]).double()
    torch.testing.assert_close(found.double(), J @ J.T, rtol=4 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.usefixtures("separate")
@pytest.mark.parametrize("on_activation", [False, True])
def test_hook_may_return_the_same_memory_in_each_pass(on_activation: bool) -> None:
    parameter, x = nn.Parameter(torch.randn(5).double()), torch.randn(3, 5).double()
    buffer = torch.empty(5).double()

    def losses(hooked: bool) -> list[Tensor]:
        z = parameter * 1.0
        if hooked:
            place = z if on_activation else parameter
            place.register_hook(lambda gradient: torch.mul(gradient, 1.0, out=buffer))
        return [(z * row).sum() for row in x]

    found = Step(UPGradWeighting(), engine="rows").backward(losses(hooked=True)).gradients
    assert found is not None
    torch.testing.assert_close(found.gramian(), x @ x.T)


@pytest.mark.usefixtures("separate")
def test_gradient_that_a_hook_changes_later_is_an_error() -> None:
    parameter, kept = nn.Parameter(torch.randn(5)), []

    def hook(gradient: Tensor) -> Tensor:
        if not kept:
            kept.append(gradient * 2)
            return kept[0]
        return kept[0].copy_(gradient)

    parameter.register_hook(hook)
    with pytest.raises(RuntimeError, match="a hook changed in place what it had returned"):
        Step(UPGradWeighting(), engine="rows").backward([(parameter * c).sum() for c in (1.0, 2.0)])


@pytest.mark.usefixtures("separate")
def test_own_gradient_is_not_the_memory_of_a_row() -> None:
    shared, own, c = (nn.Parameter(torch.randn(5)) for _ in range(3))
    found = Step(UPGradWeighting(), engine="rows").backward(
        [((shared + own) * c.detach()).sum(), shared.sum()]
    )
    assert found.gradients is not None
    assert own.grad is not None
    before = found.gradients.jacobian()
    own.grad.zero_()
    assert torch.equal(found.gradients.jacobian(), before)


def test_buffer_follows_which_parameter_is_complex() -> None:
    complex_, real, other = (
        nn.Parameter(torch.randn(4, dtype=d)) for d in (torch.cfloat, torch.float, torch.cfloat)
    )
    step = Step(UPGradWeighting(), engine="rows")

    def losses() -> list[Tensor]:
        every = [p for p in (complex_, real, other) if p.requires_grad]
        return [sum(((p * c).abs().square().sum() for p in every), torch.zeros(())) for c in (1.0, 2.0)]

    for frozen in (other, complex_):
        for p in (complex_, real, other):
            p.requires_grad_(p is not frozen)
        gradients = step.backward(losses()).gradients
        assert gradients is not None
        J = gradients.jacobian()
        torch.testing.assert_close(J[1], 4 * J[0])


def test_rows_throughout_have_one_buffer() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    heads, engine = [nn.Linear(4, 1) for _ in range(2)], Layerwise()
    step = Step(TrimmedMean(0), engine=engine)
    for _ in range(3):
        features = net(torch.randn(64, 5))
        step.backward([head(features).square().mean() for head in heads])
    held = [value for value in vars(engine).values() if isinstance(value, Tensor) and value.numel()]
    assert [buffer.shape for buffer in held] == [(2, 24)]
