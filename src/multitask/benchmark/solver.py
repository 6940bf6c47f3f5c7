"""The quadratic programs of UPGrad alone, without a network."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import UPGradWeighting

from multitask.benchmark.cells import Cell, compare
from multitask.benchmark.timing import Effort
from multitask.gradients.task_gradients import TaskGradients
from multitask.run.weighting import build_weighting
from multitask.weighting.base import WeightedMethod

CONFLICTS = {"few": 0.3, "many": 0.0}
"""Expected cosine of any two rows."""


class _Gramian(TaskGradients):
    """A Gramian without a Jacobian."""

    def __init__(self, gramian: Tensor) -> None:
        self._gramian = gramian

    def gramian(self) -> Tensor:
        return self._gramian

    def combine(self, weights: Tensor) -> None:
        raise NotImplementedError

    def jacobian(self) -> Tensor:
        raise NotImplementedError

    def assign(self, vector: Tensor) -> None:
        raise NotImplementedError


def measure_solver(
    tasks: int,
    conflicts: str,
    weighting: Mapping[str, Any],
    effort: Effort,
    device: str = "cpu",
    seed: int = 0,
) -> Iterator[Cell]:
    """Measure the computation of the weights from a Gramian, relative to TorchJD.

    ``tasks`` is the size of the Gramian, ``conflicts`` a key of :data:`CONFLICTS`; ``weighting`` has the keys of
    ``configs/weighting/upgrad.yaml``.
    """
    generator = torch.Generator().manual_seed(seed)
    cosine = CONFLICTS[conflicts]
    rows = torch.randn(tasks, 4 * tasks, generator=generator, dtype=torch.float64)
    common = torch.randn(4 * tasks, generator=generator, dtype=torch.float64)
    rows = cosine**0.5 * common + (1.0 - cosine) ** 0.5 * rows
    exact = rows @ rows.T
    expected = UPGradWeighting()(exact)
    gramian = exact.float().to(device)
    theirs, ours = UPGradWeighting(), build_weighting(weighting, [f"t{i}" for i in range(tasks)])
    assert isinstance(ours, WeightedMethod)
    losses, gradients = torch.ones(tasks, device=device), _Gramian(gramian)
    steps = {"torchjd": [lambda: theirs(gramian)], "ours": [lambda: ours.weigh(losses, gradients)]}

    def error(name: str, setting: int) -> float:
        weights = steps[name][setting]().cpu().double()
        return float((weights - expected).abs().max() / expected.abs().max())

    return compare((f"solver_{conflicts}_conflicts", "", tasks, 1), steps, error, effort)
