"""The cost of the parts of a step is logged."""

from typing import Any

import pytest
import torch
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import Mean

from multitask.callbacks.cost import Cost
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build, fit
from tests.unit.callbacks.test_conflict import Memory


@pytest.mark.parametrize("method", [UPGradWeighting, Mean])
def test_cost_is_split_and_recorded(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cost, "runs", 0)
    cost, memory = Cost(), Memory()
    module = build(adapt(method()))
    fit(
        module, Arrays(arrays(), batch_size=8), steps=13, logger=memory, log_every_n_steps=2, callbacks=[cost]
    )
    logged = next(metrics for metrics in memory.logged if "cost/step" in metrics)
    assert logged["cost/data"] >= 0
    assert logged["cost/peak_memory_mib"] > 1
    parts = ("forward", "task_gradients", "solver", "optimizer")
    assert all(logged[f"cost/{part}"] >= 0 for part in parts)
    assert 0 < sum(logged[f"cost/{part}"] for part in parts) <= logged["cost/step"] * 1.01
    facts = cost.facts()
    assert facts["step_seconds"] > 0
    assert facts["peak_memory_mib"] > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak of a GPU is reset")
def test_no_peak_in_a_later_run_and_no_median_of_a_few_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Cost, "runs", 0)
    for expected in ({"peak_memory_mib"}, set()):
        cost, memory = Cost(), Memory()
        module = build(adapt(Mean()))
        fit(module, Arrays(arrays(), 8), steps=12, logger=memory, log_every_n_steps=2, callbacks=[cost])
        logged = next(metrics for metrics in memory.logged if "cost/step" in metrics)
        assert {name for name in logged if "peak" in name} == {f"cost/{name}" for name in expected}
        assert set(cost.facts()) == expected


@pytest.mark.parametrize("method", [UPGradWeighting, Mean])
def test_cost_of_micro_batches_is_logged_once_per_step(method: Any) -> None:
    cost, memory = Cost(), Memory()
    module = build(adapt(method()), accumulate_grad_batches=3)
    fit(module, Arrays(arrays(), batch_size=4), steps=4, logger=memory, log_every_n_steps=1, callbacks=[cost])
    assert len(cost.steps) == 4
    assert len([metrics for metrics in memory.logged if "cost/step" in metrics]) == 4
    assert all("train/loss/t0" in metrics for metrics in memory.logged)
