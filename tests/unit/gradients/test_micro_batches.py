"""Factors of several micro-batches and processes equal those of one batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import Sum

from multitask.step import Step
from tests.unit.gradients.micro_batches import MicroBatch, factors_up_to, network_of, take, whole, window_of
from tests.unit.gradients.reference import assert_usable, expected, leaves_of, real, rows
from tests.unit.gradients.run_micro_batches import CASES, in_half_precision, windows_of
from tests.unit.gradients.zoo import ZOO, losses_of
from tests.unit.two_processes import found_by

# With the clipping hook, the gradient of a mean is not the mean of the gradients.
LINEAR = [name for name in ZOO if name != "hook that clips"]
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}


def assert_equals_whole(
    network: nn.Module, window: list[MicroBatch], seen: Tensor | None, found: list[Tensor | None]
) -> None:
    parameters = leaves_of(network)
    losses = whole(network, window)
    reached: list[set[int]] = [set() for _ in parameters]
    for x, _ in window:  # absent losses reach parameters too
        for i, loss in enumerate(losses_of(network, x, "task").values()):
            each = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
            for of_parameter, gradient in zip(reached, each, strict=True):
                of_parameter |= set() if gradient is None else {i}
    shared = [{0, 1} if len(of_parameter) > 1 else set() for of_parameter in reached]
    gramian, gradients = expected(rows(losses, parameters), parameters, len(losses), shared)
    assert seen is not None
    torch.testing.assert_close(seen, gramian, **ROUNDING)
    for index, (p, gradient, reference) in enumerate(zip(parameters, found, gradients, strict=True)):
        if reference is None:
            assert gradient is None or not gradient.any()
        else:
            assert gradient is not None
            p.grad = gradient
            torch.testing.assert_close(
                real(gradient), reference, msg=lambda m, n=index: f"{n}: {m}", **ROUNDING
            )
    assert_usable(parameters)


@pytest.mark.parametrize("name", LINEAR)
def test_micro_batches_equal_one_batch(name: str) -> None:
    """With all factors kept, and with rows formed from some of them between micro-batches."""
    for m, most in ((4, torch.inf), (3, 12)):
        network, window = network_of(name, m), window_of(name, m, (2, 5, 1, 3))
        with factors_up_to(most):
            assert_equals_whole(network, window, *take(network, window)[:2])


@pytest.mark.parametrize(
    ("weighting", "engine"),
    [(UPGradWeighting, "rows"), (UPGradWeighting, "auto"), (UPGradWeighting, "features"), (Sum, "auto")],
)
def test_many_micro_batches_in_half_precision(weighting: Any, engine: str) -> None:
    """A sum in bfloat16 stops growing after 2**8 equal numbers."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(8, 4), nn.Linear(4, 1), nn.Linear(4, 1)]).bfloat16()
    inputs, step = torch.randn(5, 8).bfloat16(), Step(weighting(), net, engine=engine)

    def losses() -> list[Tensor]:
        features = net[0](inputs)
        return [(net[1](features) - 3).square().mean(), (net[2](features) + 2).square().mean()]

    def found(micro_batches: int) -> tuple[Tensor, list[Tensor]]:
        net.zero_grad()
        for _ in range(micro_batches - 1):
            step.add(losses(), counts=7)
        result = step.backward(losses(), counts=7)
        assert result.losses is not None
        return result.losses.float(), [p.grad.float() for p in net.parameters() if p.grad is not None]

    (mean, gradients), (other_mean, others) = found(1), found(700)
    for each, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, each, rtol=0.02, atol=0.02 * float(each.norm()))
    torch.testing.assert_close(other_mean, mean, rtol=0.02, atol=0.0)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return found_by("tests.unit.gradients.run_micro_batches", tmp_path_factory.mktemp("two") / "found")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LINEAR)
def test_two_processes_equal_one(two_processes: list[dict], name: str, case: str) -> None:
    first, second = (found[name, case] for found in two_processes)
    m, windows, _ = CASES[case]
    for one, other in zip(first[1], second[1], strict=True):
        assert one is other is None or torch.equal(one, other)
    assert_equals_whole(network_of(name, m), windows_of(name, m, windows)[2], *first)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["rows", "auto", "features"])
def test_two_processes_in_half_precision(two_processes: list[dict], engine: str) -> None:
    """With one micro-batch on the first process, and two on the second."""
    first, second = (found["half precision"][engine] for found in two_processes)
    for one, other, alone in zip(first, second, in_half_precision(slice(3))[engine], strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, alone, rtol=0.02, atol=0.02 * float(alone.norm()))
