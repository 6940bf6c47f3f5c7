"""What is logged of conflict and cost is what a computation by hand gives."""

from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import Mean

from multitask.callbacks.conflict import Conflict
from multitask.callbacks.cost import Cost
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build, fit


class Memory(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[dict[str, float]] = []

    name = "memory"
    version = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append(dict(metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def rows_by_hand(module: Any, data: dict[str, torch.Tensor]) -> torch.Tensor:
    losses = [outcome.loss for outcome in module(data)]
    shared = list(module.trunk.parameters())
    found = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in found])


@pytest.mark.parametrize("method", [UPGradWeighting, Mean])
def test_conflict_is_that_of_the_gradients(method: Any) -> None:
    data = arrays()
    module = build(adapt(method()))
    rows = rows_by_hand(module, data)
    memory = Memory()
    fit(module, Arrays(data), logger=memory, log_every_n_steps=1, callbacks=[Conflict(probe_every=1)])
    (logged,) = (metrics for metrics in memory.logged if "conflict/negative_share" in metrics)
    unit = nn.functional.normalize(rows, dim=1)
    cosines = unit @ unit.T
    norms = rows.norm(dim=1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert logged[f"conflict/cosine/t{a}__t{b}"] == pytest.approx(cosines[a, b].item())
    pairs = torch.triu_indices(3, 3, 1)
    assert logged["conflict/negative_share"] == pytest.approx((cosines[*pairs] < 0).double().mean().item())
    similar = 2 * norms[pairs[0]] * norms[pairs[1]] / (norms[pairs[0]] ** 2 + norms[pairs[1]] ** 2)
    assert logged["conflict/magnitude_similarity"] == pytest.approx(similar.mean().item())
    assert logged["conflict/gramian/condition"] == pytest.approx(
        torch.linalg.cond(rows @ rows.T).item(), rel=1e-6
    )
    if method is UPGradWeighting:
        weights = UPGradWeighting()(rows @ rows.T)
        ratio = (weights @ rows).norm() / rows.mean(0).norm()
        assert logged["conflict/weights/norm_ratio"] == pytest.approx(ratio.item(), rel=1e-6)
        assert 0 < logged["conflict/weights/entropy"] <= 1
    else:
        assert "conflict/weights/norm_ratio" not in logged


def test_probing_leaves_no_trace() -> None:
    data = arrays()
    norm = lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.3))  # noqa: E731
    plain, probed = build(adapt(Mean()), trunk=norm()), build(adapt(Mean()), trunk=norm())
    probed.load_state_dict(plain.state_dict())
    torch.manual_seed(1)
    fit(plain, Arrays(data), steps=3)
    torch.manual_seed(1)
    fit(probed, Arrays(data), steps=3, callbacks=[Conflict(probe_every=1)])
    expected = dict(plain.trunk.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in probed.trunk.state_dict().items())


@pytest.mark.parametrize("method", [UPGradWeighting, Mean])
def test_cost_is_split_and_remembered(method: Any) -> None:
    cost, memory = Cost(), Memory()
    module = build(adapt(method()))
    fit(module, Arrays(arrays(), batch_size=8), steps=6, logger=memory, log_every_n_steps=2, callbacks=[cost])
    logged = next(metrics for metrics in memory.logged if "cost/step" in metrics)
    parts = ("forward", "task_gradients", "solver", "optimizer")
    assert all(logged[f"cost/{part}"] >= 0 for part in parts)
    assert 0 < sum(logged[f"cost/{part}"] for part in parts) <= logged["cost/step"] * 1.01
    facts = cost.facts()
    assert facts["step_seconds"] > 0
    assert facts["peak_memory_mib"] > 1


@pytest.mark.parametrize("method", [UPGradWeighting, Mean])
def test_cost_of_micro_batches_is_that_of_their_step(method: Any) -> None:
    cost, memory = Cost(), Memory()
    module = build(adapt(method()), accumulate_grad_batches=3)
    fit(module, Arrays(arrays(), batch_size=4), steps=4, logger=memory, log_every_n_steps=1, callbacks=[cost])
    assert len(cost.steps) == 4
    assert len([metrics for metrics in memory.logged if "cost/step" in metrics]) == 4
    assert all("train/loss/t0" in metrics for metrics in memory.logged)
