"""More parameters become shared as data-dependent routes change, also over micro-batches and resumes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torchjd.aggregation import UPGrad, UPGradWeighting
from torchjd.scalarization import Mean

from multitask.step import Step
from tests.unit.gradients.reference import assert_usable, expected, leaves_of, real, rows

TASKS, EXPERTS = 3, 4
Window = list[tuple[Tensor, list[tuple[int, int]], list[int]]]
"""Micro-batches: inputs, each task's two experts, and counts."""


class Routed(nn.Module):
    """Routes each task through two experts, which depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(EXPERTS))
        self.second = nn.ModuleList(nn.Linear(6, 6) for _ in range(EXPERTS))
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(TASKS))

    def losses(self, x: Tensor, routes: list[tuple[int, int]]) -> dict[str, Tensor]:
        found = {}
        for task, (first, second) in enumerate(routes):
            hidden = torch.tanh(self.experts[first](x))
            found[f"t{task}"] = (
                (self.heads[task](torch.tanh(self.second[second](hidden))) + task - 0.5).square().mean()
            )
        return found


def batches(seed: int, steps: int, micro: int) -> Iterator[Window]:
    """Yield the micro-batches of each step, in which some counts are zero."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        window = []
        for _ in range(micro):
            x = torch.randn(5, 6, generator=generator).double()
            drawn = torch.randint(0, EXPERTS, (TASKS, 2), generator=generator).tolist()
            # In the first step, each task has its own experts.
            routes = [(task, task) if step == 0 else (a, b) for task, (a, b) in enumerate(drawn)]
            counts = torch.randint(0, 4, (TASKS,), generator=generator).tolist()
            window.append((x, routes, counts))
        yield window


def whole(model: Routed, window: Window) -> dict[str, Tensor]:
    """Return the step's mean losses in one graph."""
    total = {f"t{i}": sum(counts[i] for *_, counts in window) for i in range(TASKS)}
    found: dict[str, Tensor] = {}
    for x, routes, counts in window:
        for (name, loss), count in zip(model.losses(x, routes).items(), counts, strict=True):
            if count:
                found[name] = found.get(name, torch.zeros(()).double()) + loss * (count / total[name])
    return found


def gradients_of(
    model: Routed, window: Window, reached: list[set[int]]
) -> tuple[list[Tensor | None], list[set[int]]]:
    """Return TorchJD's gradients over all parameters shared so far, and the losses that reached each one."""
    parameters = leaves_of(model)
    reached = [set(losses) for losses in reached]
    for x, routes, _ in window:
        for i, loss in enumerate(model.losses(x, routes).values()):
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            for losses, gradient in zip(reached, found, strict=True):
                losses |= set() if gradient is None else {i}
    present = whole(model, window)
    if not present:
        return [None] * len(parameters), reached
    shared = [{0, 1} if len(losses) > 1 else set() for losses in reached]
    _, gradients = expected(rows(present, parameters), parameters, len(present), shared, UPGradWeighting())
    return gradients, reached


def take(step: Step, model: Routed, window: Window) -> None:
    for p in model.parameters():
        p.grad = None
    for number, (x, routes, counts) in enumerate(window):
        last = number == len(window) - 1
        (step.backward if last else step.add)(model.losses(x, routes), counts)


def assert_same(model: Routed, gradients: list[Tensor | None]) -> None:
    for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
        if gradient is None:
            assert p.grad is None or not p.grad.any(), name
        else:
            assert p.grad is not None, name
            torch.testing.assert_close(
                real(p.grad), gradient, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert_usable(leaves_of(model))


def routed() -> Routed:
    torch.manual_seed(0)
    return Routed().double()


@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("resumed", [False, True])
def test_every_step_combines_all_parameters_shared_so_far(engine: str, micro: int, resumed: bool) -> None:
    for seed in range(5):
        model = routed()
        step, reached = Step(UPGrad(), model, engine=engine), [set() for _ in model.parameters()]
        for window in batches(seed, 4, micro):
            gradients, reached = gradients_of(model, window, reached)
            take(step, model, window)
            assert_same(model, gradients)
            if resumed:
                state, step = step.state_dict(), Step(UPGrad(), model, engine=engine)
                step.load_state_dict(state)


def run(rank: int, store: str, out: str, micro: int, seed: int) -> None:
    """Take the steps in one of two processes, each with every other micro-batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, found = routed(), []
    step = Step(UPGrad(), model)
    for window in batches(seed, 4, 2 * micro):
        take(step, model, window[rank::2])
        found.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    torch.save(found, f"{out}.{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("micro", [1, 2])
def test_two_processes_combine_all_parameters_shared_so_far(micro: int, tmp_path: Path) -> None:
    for seed in range(2):
        mp.spawn(run, (str(tmp_path / f"store{seed}"), str(tmp_path / "out"), micro, seed), nprocs=2)
        processes = [torch.load(tmp_path / f"out.{rank}") for rank in range(2)]
        model = routed()
        reached: list[set[int]] = [set() for _ in model.parameters()]
        for number, window in enumerate(batches(seed, 4, 2 * micro)):
            gradients, reached = gradients_of(model, window, reached)
            for found in processes:
                for p, gradient in zip(model.parameters(), found[number], strict=True):
                    p.grad = gradient
                assert_same(model, gradients)


def every_kind() -> dict[str, Tensor]:
    """Return a shared parameter, and bfloat16, complex and sparse parameters of one loss each."""
    torch.manual_seed(0)
    return {
        "shared": nn.Parameter(torch.randn(3).double()),
        "half": nn.Parameter(torch.randn(3).bfloat16()),
        "spectrum": nn.Parameter(torch.randn(3, dtype=torch.complex128)),
        "table": nn.Embedding(5, 3, sparse=True).double().weight,
    }


def losses_on(model: dict[str, Tensor], rank: int) -> list[Tensor]:
    looked_up = nn.functional.embedding(torch.tensor([rank, 4]), model["table"], sparse=True)
    first = (model["shared"] * model["half"] * (1 + rank)).sum() + looked_up.square().sum()
    return [first, (model["spectrum"] * model["shared"]).abs().sum() * (1 + rank)]


WEIGHTINGS: dict[str, Callable[[], object]] = {"upgrad": UPGrad, "mean": Mean}


def run_every_kind(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for name, weighting in WEIGHTINGS.items():
        model = every_kind()
        Step(weighting(), model).backward(losses_on(model, rank))
        found[name] = [real(p.grad).clone() for p in model.values() if p.grad is not None]
        with pytest.raises(ValueError, match="pass model="):
            Step(weighting()).backward(losses_on(model, rank))
        with pytest.raises(ValueError, match="pass model="):
            Step(weighting(), shared=[model["shared"]]).backward(losses_on(model, rank))
    torch.save(found, f"{out}.{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_own_gradients_of_every_kind_on_two_processes(tmp_path: Path) -> None:
    mp.spawn(run_every_kind, (str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2)
    for name, weighting in WEIGHTINGS.items():
        model = every_kind()
        step = Step(weighting(), model)
        for rank in range(2):
            (step.add, step.backward)[rank](losses_on(model, rank))
        for rank in range(2):
            found = torch.load(tmp_path / f"out.{rank}")[name]
            for p, gradient in zip(model.values(), found, strict=True):
                assert p.grad is not None
                rounding = 1e-2 if p.dtype == torch.bfloat16 else 1e-9
                torch.testing.assert_close(gradient, real(p.grad), rtol=rounding, atol=1e-12)
