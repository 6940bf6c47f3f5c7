"""The quadratic programs of UPGrad alone, without a network."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import UPGradWeighting

from multitask.benchmark.cells import Cell, Effort
from multitask.benchmark.timing import interleaved, peak_mib
from multitask.gradients.task_gradients import TaskGradients
from multitask.run.weighting import build_weighting
from multitask.weighting.base import WeightedMethod

# Cosine that any two random rows have in the mean.
CONFLICTS = {"few": 0.3, "many": 0.0}


class _Gramian(TaskGradients):
    """A Gramian and nothing else."""

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
    """Measure the weights from a Gramian; times are relative to TorchJD's.

    Args:
        tasks: The size of the Gramian.
        conflicts: ``few`` or ``many``: whether rows have something in common or none.
        weighting: The keys of ``configs/weighting/upgrad.yaml``.
        effort: How long to measure.
        device: The device of the Gramian.
        seed: Of the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    cosine = CONFLICTS[conflicts]
    rows = torch.randn(tasks, 4 * tasks, generator=generator, dtype=torch.float64)
    common = torch.randn(4 * tasks, generator=generator, dtype=torch.float64)
    rows = cosine**0.5 * common + (1.0 - cosine) ** 0.5 * rows
    exact = rows @ rows.T
    wanted = UPGradWeighting()(exact)
    gramian = exact.float().to(device)
    theirs, ours = UPGradWeighting(), build_weighting(weighting, [f"t{i}" for i in range(tasks)])
    assert isinstance(ours, WeightedMethod)
    losses = torch.ones(tasks, device=device)
    gradients = _Gramian(gramian)
    calls = {"torchjd": lambda: theirs(gramian), "ours": lambda: ours.weigh(losses, gradients)}
    peaks = {name: peak_mib(call) for name, call in calls.items()}
    times = interleaved({name: [call] for name, call in calls.items()}, effort)
    for name, (seconds, _) in times.items():
        error = (calls[name]().cpu().double() - wanted).abs().max() / wanted.abs().max()
        yield Cell(
            case=f"solver_{conflicts}_conflicts",
            trunk="",
            tasks=tasks,
            batch=1,
            method=name,
            ratio=seconds / times["torchjd"][0],
            ms=seconds * 1e3,
            peak_mib=peaks[name],
            max_error=float(error),
        )
