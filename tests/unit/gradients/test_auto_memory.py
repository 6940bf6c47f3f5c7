"""weighting.memory=auto keeps the rows if they fit into free memory, and streams them otherwise."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting

from multitask.benchmark.problems import make
from multitask.benchmark.timing import peak_mib
from multitask.gradients import auto_memory
from multitask.gradients.auto_memory import free_memory
from multitask.gradients.engines import make_engine
from multitask.gradients.rows import Rows
from multitask.step import Step
from multitask.system import available_memory
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build, fit
from tests.unit.gradients.reference import EXACT, Known, assert_step, leaves_of
from tests.unit.gradients.zoo import ZOO, losses_of, network

PLENTY = 2**50
Free = Callable[[int], None]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Return a function that sets the number of free bytes."""
    return lambda count: monkeypatch.setattr(auto_memory, "free_memory", lambda device: count)


def test_exact_for_every_network(free: Free) -> None:
    free(PLENTY)
    for name in ZOO:
        net, x = network(name, 3, 7)
        step = Step(Known(), net, memory="auto")
        assert_step(step, partial(losses_of, net, x, "task"), leaves_of(net), **EXACT)


@pytest.mark.parametrize(("count", "taken"), [(0, "stream"), (PLENTY, "rows")])
@pytest.mark.parametrize("name", ["mlp", "conv", "encoder", "lstm"])
def test_each_choice_equals_its_mode(name: str, count: int, taken: Any, free: Free) -> None:
    free(count)
    found = []
    for memory in ("auto", taken):
        net, x = network(name, 3, 7)
        Step(Known(), net, memory=memory).backward(losses_of(net, x, "task"))
        found.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def gradients(step: Step, net: nn.Module, x: Tensor) -> list[Tensor | None]:
    net.zero_grad()
    step.backward(losses_of(net, x, "task"))
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize(("first", "later"), [(0, PLENTY), (PLENTY, 0)])
def test_choice_is_logged_once_and_resumed(
    first: int, later: int, free: Free, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    net, x = network("mlp", 3, 7)
    step = Step(Known(), net, memory="auto")
    free(first)
    expected = gradients(step, net, x)
    free(later)
    resumed = Step(Known(), net, memory="auto")
    resumed.load_state_dict(step.state_dict())
    for one in (step, resumed):
        torch.testing.assert_close(gradients(one, net, x), expected, rtol=0, atol=0)
    state = resumed.state_dict()["memory"]
    assert (state["taken"], state["bytes_free"]) == ("rows" if first else "stream", first)
    (record,) = caplog.records
    assert record.levelno == (logging.INFO if first else logging.WARNING)
    mib = [f"{count / 2**20:,.1f} MiB" for count in (state["bytes_needed"], first)]
    assert record.getMessage() == (
        f"weighting.memory=auto takes {state['taken']}: rows need {mib[0]}, and {mib[1]} are free on cpu."
    )


def test_rows_that_just_fit_are_kept(free: Free) -> None:
    """After loading a state without a choice, a step chooses again; one missing byte decides."""
    net, x = network("mlp", 3, 7)
    free(0)
    step = Step(Known(), net, memory="auto")
    gradients(step, net, x)
    needed = step.state_dict()["memory"]["bytes_needed"]
    for count, taken in ((needed, "rows"), (needed - 1, "stream")):
        free(count)
        step.load_state_dict(Step(Known(), net).state_dict())
        gradients(step, net, x)
        assert step.state_dict()["memory"]["taken"] == taken


def test_choice_is_made_once_parameters_are_shared(free: Free) -> None:
    free(0)
    shared, own = nn.Linear(3, 2), nn.ModuleList(nn.Linear(3, 1) for _ in range(2))
    step, x = Step(Known(), nn.ModuleList([shared, *own]), memory="auto"), torch.randn(4, 3)
    step.backward([head(x).square().mean() for head in own])
    assert step.state_dict()["memory"] == {}
    step.backward(shared(x).square().mean(0))
    assert step.state_dict()["memory"]["taken"] == "stream"


@pytest.mark.parametrize(("trunk", "tasks"), [("transformer", 8), ("mlp", 5), ("lenet", 3)])
def test_rows_need_the_predicted_memory(
    trunk: str, tasks: int, free: Free, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps, with rows instead of factors, and with the moments of Adam in the second step."""
    monkeypatch.setattr(auto_memory, "Layerwise", Rows)
    free(PLENTY)
    problem = make(trunk, tasks)
    adam = torch.optim.Adam([*problem.trunk.parameters(), *problem.heads.parameters()])
    step = Step(adapt(UPGradWeighting()), memory="auto")

    def forward() -> list[Tensor]:
        return problem.losses(problem.trunk(problem.batch["inputs"]))

    def two_steps() -> None:
        for _ in range(2):
            adam.zero_grad()
            step.backward(forward())
            adam.step()

    graph, most = peak_mib(forward), peak_mib(two_steps)
    needed = step.state_dict()["memory"]["bytes_needed"] / 2**20
    # On some processors the backward pass of a convolution holds one gradient less.
    assert (0.6 if trunk == "lenet" else 0.8) * needed <= most - graph <= needed


def test_module_trains_as_with_rows(free: Free) -> None:
    free(0)
    found = {}
    for memory in ("rows", "auto"):
        torch.manual_seed(0)
        module = build(adapt(UPGradWeighting()), engine=make_engine("auto", memory))
        fit(module, Arrays(arrays(count=6)), steps=3)
        found[memory] = list(module.parameters())
    torch.testing.assert_close(found["auto"], found["rows"], **EXACT)


def test_rejected_if_free_memory_is_unknown() -> None:
    with pytest.raises(
        ValueError, match=r"memory=auto cannot tell .* free on meta; set it to rows or stream"
    ):
        Step(Known(), memory="auto").backward(nn.Linear(3, 2, device="meta").weight.sum(1))


class Accelerator(SimpleNamespace):
    """Stands in for ``torch.cuda``: of 10 000 bytes, others use 1 000, and this process has reserved 4 000."""

    def __init__(self, **others: Any) -> None:
        values = {
            "mem_get_info": (5_000, 10_000),
            "memory_reserved": 4_000,
            "memory_allocated": 3_000,
            **others,
        }
        super().__init__(**{name: partial(self._value, value) for name, value in values.items()})

    def _value(self, value: Any, device: torch.device) -> Any:
        assert device.type == "cuda"
        return value


@pytest.mark.parametrize(
    ("others", "left"),
    [({}, 6_000), ({"get_per_process_memory_fraction": 1.0}, 6_000), ({"get_per_process_memory_fraction": 0.5}, 2_000)],
)  # fmt: skip
def test_free_memory_of_a_gpu(others: dict[str, float], left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", Accelerator(**others))
    assert free_memory(torch.device("cuda")) == left


def test_free_memory_of_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    values = SimpleNamespace(recommended_max_memory=lambda: 7_000, current_allocated_memory=lambda: 2_000)
    monkeypatch.setattr(torch, "mps", values)
    assert free_memory(torch.device("mps")) == 5_000


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str, str], None]:
    """Return a function that writes a system file of a machine with 4 000 KiB available."""

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal: 9000 kB\nMemFree: 1000 kB\nMemAvailable: 4000 kB\n")
    write("proc/self/cgroup", "0::/\n")
    return write


def test_available_memory_of_a_machine(machine: Callable[[str, str], None], tmp_path: Path) -> None:
    assert available_memory(tmp_path) == 4000 * 1024
    assert available_memory(tmp_path / "nothing") is None
    assert (available_memory() or PLENTY) > 2**20


@pytest.mark.parametrize(
    ("own", "group", "files", "cached"),
    [
        ("0::/job/step", "job", "max current stat", "anon 7\ninactive_file 5000"),
        ("0::/", ".", "max current stat", "inactive_file 5000"),
        ("4:memory:/a", "memory", "limit_in_bytes usage_in_bytes stat", "inactive_file 1\ntotal_inactive_file 5000"),
    ],
)  # fmt: skip
def test_limits_of_control_groups(
    own: str, group: str, files: str, cached: str, machine: Callable[[str, str], None], tmp_path: Path
) -> None:
    """The tightest limit of the process applies, and cached files do not count as used."""
    machine("proc/self/cgroup", f"1:cpu:/\n{own}\n")
    machine("sys/fs/cgroup/job/step/memory.max", "max\n")
    for name, value in zip(files.split(), ("90000", "60000", cached), strict=True):
        machine(f"sys/fs/cgroup/{group}/memory.{name}", f"{value}\n")
    assert available_memory(tmp_path) == 35_000
