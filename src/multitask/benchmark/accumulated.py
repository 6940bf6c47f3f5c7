"""The ways to one step of several micro-batches of equal size."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import UPGrad, UPGradWeighting
from torchjd.autogram import Engine as Autogram
from torchjd.autojac import jac_to_grad, mtl_backward

from multitask.benchmark.methods import Make, Method
from multitask.benchmark.problems import Problem
from multitask.run.weighting import build_weighting
from multitask.step import Step

MICRO_BATCHES = 4


class Accumulated(Method):
    """A step of :data:`MICRO_BATCHES` micro-batches.

    Args:
        problem: Its batch is split.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        each = zip(*(values.chunk(MICRO_BATCHES) for values in problem.batch.values()), strict=True)
        self._parts = [replace(problem, batch=dict(zip(problem.batch, part, strict=True))) for part in each]

    def _features_and_losses(self, part: Problem) -> tuple[Tensor, list[Tensor]]:
        features = self.trunk(part.batch["inputs"])
        return features, part.losses(features)


class AccumulatedSum(Accumulated):
    """One backward pass of the sum per micro-batch: what every ratio is relative to."""

    meaning = "sum"

    def fill(self) -> None:
        """Differentiate the sum of the losses of each micro-batch."""
        for part in self._parts:
            (torch.stack(self._features_and_losses(part)[1]).sum() / MICRO_BATCHES).backward()


class AccumulatedOurs(Accumulated):
    """The step of this package.

    Args:
        problem: See :class:`Accumulated`.
        weighting: The keys of ``configs/weighting/upgrad.yaml``.
    """

    def __init__(self, problem: Problem, weighting: Mapping[str, Any]) -> None:
        super().__init__(problem)
        device = next(problem.trunk.parameters()).device
        self._step = Step(
            build_weighting(dict(weighting), [f"t{i}" for i in range(len(problem.heads))]).to(device)
        )

    def fill(self) -> None:
        """Add the micro-batches, and take the step with the last one."""
        *first, last = self._parts
        for part in first:
            self._step.add(self._features_and_losses(part)[1])
        self._step.backward(self._features_and_losses(last)[1])


class AccumulatedAutojac(Accumulated):
    """TorchJD's ``mtl_backward`` and ``jac_to_grad``.

    Args:
        problem: See :class:`Accumulated`.
        chunk: Rows differentiated together by vmap; ``None`` for all, 1 for one after the other.
        optimized: Whether the Gramian is summed over the parameters, without the whole Jacobian.
        together: Whether the mean losses of all micro-batches are differentiated, whose graphs are kept until then;
            otherwise each micro-batch is, and TorchJD adds the Jacobians.
    """

    def __init__(self, problem: Problem, chunk: int | None, optimized: bool, together: bool) -> None:
        super().__init__(problem)
        self._chunk = chunk
        self._optimized = optimized
        self._together = together
        self._aggregator = UPGrad()

    def fill(self) -> None:
        """Compute the Jacobian of the means, and aggregate it."""
        if self._together:
            found = [self._features_and_losses(part) for part in self._parts]
            self._differentiate([features for features, _ in found], _means([losses for _, losses in found]))
        else:
            for part in self._parts:
                features, losses = self._features_and_losses(part)
                self._differentiate([features], [loss / MICRO_BATCHES for loss in losses])
        jac_to_grad(self.problem.shared, self._aggregator, optimize_gramian_computation=self._optimized)

    def _differentiate(self, features: list[Tensor], losses: list[Tensor]) -> None:
        mtl_backward(losses, features=features, parallel_chunk_size=self._chunk)


class AccumulatedAutogram(Accumulated):
    """TorchJD's ``Engine`` on the mean losses of all micro-batches."""

    meaning = "weighted"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._engine = Autogram(problem.trunk, batch_dim=None)
        self._weighting = UPGradWeighting()

    def fill(self) -> None:
        """Compute the Gramian, weigh, and differentiate the weighted losses."""
        losses = torch.stack(_means([self._features_and_losses(part)[1] for part in self._parts]))
        losses.backward(self._weighting(self._engine.compute_gramian(losses)))


def _means(losses: Sequence[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(of_task).mean() for of_task in zip(*losses, strict=True)]


def accumulated_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return what makes each method; of several settings of one the fastest counts."""
    return {
        "weighted_sum": [AccumulatedSum],
        "ours": [partial(AccumulatedOurs, weighting=weighting)],
        "torchjd_autojac": [
            partial(AccumulatedAutojac, chunk=chunk, optimized=optimized, together=together)
            for chunk in (1, None)
            for optimized in (True, False)
            for together in (True, False)
        ],
        "torchjd_autogram": [AccumulatedAutogram],
    }
