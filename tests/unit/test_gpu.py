"""Steps on a CUDA device: ``pytest -m gpu``; ``tests/unit/weighting/test_devices.py`` needs no GPU."""

import warnings
from pathlib import Path

import pytest
import torch

from multitask import Step
from tests.unit.run_on_devices import ON_PROCESSES, losses_of, problem, trained
from tests.unit.two_processes import found_by
from tests.unit.weighting.members import NAMES
from tests.unit.weighting.promises import noted

pytestmark = pytest.mark.gpu

DRAW_ON_DEVICE = {"rlw", "graddrop"}
"""Members that draw random numbers on the device, which differ from those of the CPU."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DRAW_ON_DEVICE])
def test_gpu_agrees_with_the_cpu(name: str) -> None:
    torch.testing.assert_close(trained(name, "cuda"), trained(name, "cpu"), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in NAMES if not noted("waits", name)])
def test_a_step_waits_for_the_gpu_once(name: str) -> None:
    weighting, trunk, heads, inputs = problem(name, "cuda")
    step = Step(weighting, torch.nn.ModuleList([trunk, heads]))
    for _ in range(2):  # the first step also moves the weighting
        losses = losses_of(weighting, trunk, heads, inputs)
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = step.backward(losses)
                step.after_step(lambda: losses_of(weighting, trunk, heads, inputs), result.present)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    assert len(waits) <= 1, [(warning.filename, warning.lineno) for warning in waits]


@pytest.mark.parametrize("name", ["weighted_sum", "upgrad", "gradvac", "moco"])
def test_half_precision_skips_steps_that_overflow(name: str) -> None:
    weighting, trunk, heads, inputs = problem(name, "cuda")
    model = torch.nn.ModuleList([trunk, heads]).float()
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    step = Step(weighting.float(), model, scaler=scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    overflows = 0
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            losses = losses_of(weighting, trunk, heads, inputs.float())
        step.backward(losses)
        scaler.unscale_(optimizer)
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= scale:
            break
        overflows += 1
    assert overflows > 0
    assert found.isfinite().all()

    exact, trunk, heads, inputs = problem(name, "cuda")
    model = torch.nn.ModuleList([trunk, heads])
    Step(exact, model).backward(losses_of(exact, trunk, heads, inputs))
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_nccl_processes_equal_one(tmp_path: Path) -> None:
    first, second = found_by("tests.unit.run_on_devices", tmp_path / "found")
    for name in ON_PROCESSES:
        assert torch.equal(first[name], second[name])
        if name not in DRAW_ON_DEVICE:
            torch.testing.assert_close(first[name], trained(name, "cuda"), rtol=1e-8, atol=1e-10)
