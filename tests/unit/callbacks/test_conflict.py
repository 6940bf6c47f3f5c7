"""The logged conflict equals a computation by hand."""

from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import nn
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import Mean

from multitask.callbacks.conflict import Conflict
from multitask.weighting.adapter import adapt
from multitask.weighting.projection import ExactProjector
from tests.conftest import Arrays, arrays, build, fit, regression
from tests.unit.weighting.members import make


class Memory(Logger):
    """Keeps the logged metrics."""

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
def test_conflict_of_the_gradients(method: Any) -> None:
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
    weights = (
        UPGradWeighting()(rows @ rows.T) if method is UPGradWeighting else torch.full((3,), 1 / 3).double()
    )
    ratio = (weights @ rows).norm() / rows.mean(0).norm()
    assert logged["conflict/weights/norm_ratio"] == pytest.approx(ratio.item(), rel=1e-6)
    shares = weights / weights.sum()
    entropy = -(shares * shares.log()).sum() / torch.tensor(3.0).log()
    assert logged["conflict/weights/entropy"] == pytest.approx(entropy.item(), rel=1e-6)
    for i in range(3):
        assert logged[f"weight/t{i}"] == pytest.approx(weights[i].item(), rel=1e-6)
    assert logged["conflict/solver/seconds"] >= 0
    assert logged["conflict/solver/failures"] == 0


@pytest.mark.parametrize("window", [1, 3])
def test_a_task_without_labels_is_excluded(window: int) -> None:
    """It is excluded from the conflict and from probes, and its share of labels is logged."""
    for weighting in (Mean(), UPGradWeighting()):
        data = arrays()
        data["t1"][:] = torch.nan
        heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(3)}
        module = build(adapt(weighting), heads=heads, accumulate_grad_batches=window)
        rows = rows_by_hand(module, {name: values[: 24 // window] for name, values in data.items()})[[0, 2]]
        memory = Memory()
        fit(
            module,
            Arrays(data, batch_size=24 // window),
            logger=memory,
            log_every_n_steps=1,
            callbacks=[Conflict(probe_every=1)],
        )
        logged = {key: value for metrics in memory.logged for key, value in metrics.items()}
        assert [key for key in logged if "conflict/cosine" in key] == ["conflict/cosine/t0__t2"]
        if window == 1 or isinstance(weighting, Mean):
            cosine = nn.functional.cosine_similarity(rows[0], rows[1], dim=0)
            assert logged["conflict/cosine/t0__t2"] == pytest.approx(cosine.item())
        assert [logged[f"train/labelled/t{i}"] for i in range(3)] == [1, 0, 1]
        assert "train/loss/t1" not in logged
        assert "weight/t1" not in logged


@pytest.mark.parametrize("probe_every", [None, 1])
def test_m_config_has_a_gramian_if_probed(probe_every: int | None) -> None:
    data = arrays()
    module = build(make("m_config", 3), accumulate_grad_batches=1)
    rows = rows_by_hand(module, data)
    memory = Memory()
    fit(
        module,
        Arrays(data),
        steps=2,
        logger=memory,
        log_every_n_steps=1,
        callbacks=[Conflict(probe_every=probe_every)],
    )
    cosines = [m["conflict/cosine/t0__t2"] for m in memory.logged if "conflict/cosine/t0__t2" in m]
    expected = nn.functional.cosine_similarity(rows[0], rows[2], dim=0).item()
    assert cosines[:1] == ([pytest.approx(expected)] if probe_every else [])


def test_failures_of_a_solver_are_logged() -> None:
    class Failing(UPGradWeighting):
        def forward(self, gramian: torch.Tensor, /) -> torch.Tensor:
            self.projector.failures += 1
            self.projector.seconds += 0.5
            return torch.ones_like(gramian[0])

    memory = Memory()
    fit(
        build(adapt(Failing(projector=ExactProjector()))),
        Arrays(arrays()),
        logger=memory,
        log_every_n_steps=1,
        callbacks=[Conflict()],
    )
    (logged,) = (metrics for metrics in memory.logged if "conflict/solver/failures" in metrics)
    assert logged["conflict/solver/failures"] == 1
    assert logged["conflict/solver/seconds"] == pytest.approx(0.5)


def test_probing_does_not_affect_training() -> None:
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
