"""A weighting gets only the rows that it names in ``wants()``, with the same result."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torchjd.autojac import jac

from multitask import Step
from multitask.weighting.base import hooks_of
from multitask.weighting.wrapper import Every
from tests.unit.weighting.members import NAMES, make, update

M = 3
MISSING = [(4, 0, 4), (0, 4, 4), (4, 4, 4), (4, 4, 0), (4, 4, 4), (4, 0, 0), (4, 4, 4)]


class Net(nn.Module):
    """A trunk with a head per task, which counts the backward passes through the trunk."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(M))
        self.double()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x)
        features.register_hook(self._count)
        return torch.stack([(head(features) - i).square().mean() for i, head in enumerate(self.heads)])

    def _count(self, gradient: Tensor) -> None:
        self.passes += 1


def inputs(step: int, parts: int = 1) -> list[Tensor]:
    return list(torch.randn(4 * parts, 5, generator=torch.Generator().manual_seed(step)).double().split(4))


def expected(net: Net, combiner: nn.Module, x: Tensor, present: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Return the trunk's gradient from a combiner that reads all rows, and the gradients of the present heads."""
    losses, shared = net(x), list(net.trunk.parameters())
    rows = jac(losses, shared, retain_graph=True, parallel_chunk_size=1)
    J = torch.cat([r.flatten(1) for r in rows], 1)[list(present)]
    mask = torch.zeros(M, dtype=torch.bool)
    mask[list(present)] = True
    with combiner.restricted_to(mask):  # type: ignore[operator]
        vector = update(combiner, losses[list(present)], J).vector  # type: ignore[arg-type]
    own = [
        torch.autograd.grad(losses[i], list(net.heads[i].parameters()), retain_graph=True) for i in present
    ]
    return vector, [g for of_head in own for g in of_head]


@pytest.mark.parametrize(
    "case", ["whole", "one count", "micro-batches", "labels missing", "missing in parts"]
)
def test_m_config_gets_only_its_row_and_all_heads_their_gradients(case: str) -> None:
    net = Net()
    # One pass per row, so that they can be counted.
    engine = "rows" if case == "missing in parts" else "auto"
    step, alone = Step(make("m_config", M), net, engine=engine), make("m_config", M)
    for number, counts in enumerate(MISSING):
        parts = inputs(number, 2 if case in ("micro-batches", "missing in parts") else 1)
        present = [i for i in range(M) if counts[i] or "missing" not in case]
        vector, own = expected(net, alone, torch.cat(parts), present)
        net.passes = 0
        given = {"one count": 4, "labels missing": list(counts), "missing in parts": list(counts)}.get(case)
        for part in parts[:-1]:
            step.add(net(part), given)  # type: ignore[arg-type]
        result = step.backward(net(parts[-1]), given)  # type: ignore[arg-type]
        assert result.gradients is None or case == "missing in parts"
        found = torch.cat([p.grad.flatten() for p in net.trunk.parameters() if p.grad is not None])
        torch.testing.assert_close(found, vector, rtol=1e-10, atol=1e-12)
        heads = [p.grad for i in present for p in net.heads[i].parameters()]
        torch.testing.assert_close(heads, own, rtol=1e-10, atol=1e-12)
        if case == "missing in parts":
            assert net.passes == 2 * len(present)
        elif number:
            assert net.passes == len(parts)
        net.zero_grad()


def test_all_rows_are_computed_for_a_wrapped_method() -> None:
    """The wrapped method still uses only its own row."""
    net, plain = Net(), Net()
    rescaled = Step(make("m_config", M, rescale=True), net, engine="rows")
    step = Step(make("m_config", M), plain)
    for number in range(4):
        (x,) = inputs(number)
        net.passes = 0
        rescaled.backward(net(x))
        step.backward(plain(x))
        assert net.passes == M
        a, b = (torch.cat([p.grad.flatten() for p in n.trunk.parameters()]) for n in (net, plain))  # type: ignore[union-attr]
        torch.testing.assert_close(a / a.norm(), b / b.norm())
        net.zero_grad()
        plain.zero_grad()


def test_moments_restart_when_the_shared_parameters_change() -> None:
    net = Net()
    step, alone = Step(make("m_config", M), net), make("m_config", M)
    for number in range(8):
        net.trunk[0].bias.requires_grad_(number < 3)  # type: ignore[union-attr, operator]
        (x,) = inputs(number)
        losses, shared = net(x), [p for p in net.trunk.parameters() if p.requires_grad]
        rows = jac(losses, shared, retain_graph=True, parallel_chunk_size=1)
        vector = update(alone, losses, torch.cat([r.flatten(1) for r in rows], 1)).vector
        step.backward(net(x))
        found = torch.cat([p.grad.flatten() for p in shared if p.grad is not None])
        assert found.isfinite().all()
        torch.testing.assert_close(found, vector, rtol=1e-10, atol=1e-12)
        net.zero_grad()


def test_no_other_method_wants_only_some_rows() -> None:
    assert [name for name in NAMES if "wants" in hooks_of(make(name, 5))] == ["m_config"]
    assert "wants" not in hooks_of(Every(["a", "b"], make("mgda", 2), 2))  # type: ignore[arg-type]
