"""Methods to compute one step: a forward pass, and the ``.grad`` of every parameter, without an optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import UPGrad, UPGradWeighting
from torchjd.autogram import Engine as Autogram
from torchjd.autojac import jac_to_grad, mtl_backward

from multitask.benchmark.problems import Problem
from multitask.benchmark.reference import Meaning
from multitask.gradients.rows import add_to_gradients, split_like
from multitask.private import keep_buffers_of_backward
from multitask.run.weighting import build_weighting
from multitask.step import Step


class Method(ABC):
    """One method to compute a step.

    Args:
        problem: The problem; its ``.grad`` fields are overwritten.
        compiled: Whether to compile the trunk with ``torch.compile``.
        micro_batches: Number of micro-batches, of equal size, into which the batch is divided.
    """

    meaning: Meaning = "own"

    def __init__(self, problem: Problem, compiled: bool = False, micro_batches: int = 1) -> None:
        self.problem = problem
        self.trunk: Callable[[Tensor], Tensor] = problem.trunk
        if compiled:
            keep_buffers_of_backward()
            self.trunk = torch.compile(problem.trunk)
        self.parts = [problem]
        if micro_batches > 1:
            chunks = zip(*(values.chunk(micro_batches) for values in problem.batch.values()), strict=True)
            self.parts = [replace(problem, batch=dict(zip(problem.batch, c, strict=True))) for c in chunks]

    def outputs(self, part: Problem, reduction: str = "mean") -> tuple[Tensor, list[Tensor]]:
        """Return the trunk's features of a micro-batch, and its losses."""
        features = self.trunk(part.batch["inputs"])
        return features, part.losses(features, reduction)

    def averaged(self, losses: Sequence[list[Tensor]]) -> list[Tensor]:
        """Return each task's loss from those of micro-batches, which add up to the mean over all of them."""
        if len(self.parts) == 1:
            return losses[0]
        return [torch.stack(of_task).sum() / len(self.parts) for of_task in zip(*losses, strict=True)]

    def step(self) -> None:
        """Clear the gradients and compute them again."""
        self.problem.clear()
        self.fill()

    @abstractmethod
    def fill(self) -> None:
        """Compute the ``.grad`` of all parameters."""


class WeightedSum(Method):
    """One backward pass of the sum of the losses per micro-batch."""

    meaning = "sum"

    def fill(self) -> None:
        """Differentiate the sum of the losses."""
        for part in self.parts:
            total = torch.stack(self.outputs(part)[1]).sum()
            total.backward(torch.full_like(total, 1 / len(self.parts)))


class Ours(Method):
    """The step of this package.

    Args:
        weighting: The keys of ``configs/weighting/upgrad.yaml``.
        rows: ``task`` for one row per task, ``example`` for instance-wise steps.
        options: Those of :class:`~multitask.step.Step`.
    """

    def __init__(
        self,
        problem: Problem,
        weighting: Mapping[str, Any],
        rows: str = "task",
        compiled: bool = False,
        micro_batches: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(problem, compiled, micro_batches)
        self._reduction = "none" if rows == "example" else "mean"
        combiner = build_weighting({**weighting, "rows": rows}, [f"t{i}" for i in range(len(problem.heads))])
        device = next(problem.trunk.parameters()).device
        self._step = Step(combiner.to(device), shared=problem.shared if compiled else None, **options)

    def fill(self) -> None:
        """Add all micro-batches but the last, and take the step with it."""
        *first, last = self.parts
        for part in first:
            self._step.add(self.outputs(part, self._reduction)[1])
        self._step.backward(self.outputs(last, self._reduction)[1])


class Autojac(Method):
    """TorchJD's ``mtl_backward`` and ``jac_to_grad``.

    Args:
        chunk: Number of rows that one vmap differentiates; ``None`` for all.
        optimized: Whether the Gramian is summed over the parameters without storing the whole Jacobian.
        together: Whether the mean losses of all micro-batches are differentiated, whose graphs are kept until then;
            otherwise each micro-batch is, and TorchJD adds the Jacobians.
    """

    def __init__(
        self,
        problem: Problem,
        chunk: int | None,
        optimized: bool,
        together: bool = True,
        micro_batches: int = 1,
    ) -> None:
        super().__init__(problem, micro_batches=micro_batches)
        self._chunk = chunk
        self._optimized = optimized
        self._together = together
        self._aggregator = UPGrad()

    def fill(self) -> None:
        """Compute the Jacobian and aggregate it."""
        for parts in [self.parts] if self._together else [[part] for part in self.parts]:
            features, losses = zip(*map(self.outputs, parts), strict=True)
            mtl_backward(self.averaged(losses), features=features, parallel_chunk_size=self._chunk)
        jac_to_grad(self.problem.shared, self._aggregator, optimize_gramian_computation=self._optimized)


class AutogramRecipe(Method):
    """TorchJD's documented use of its ``Engine``: Gramian, weights, backward pass of the weighted sum.

    Args:
        batch_dim: The engine's argument; 0 for one loss per example.
    """

    meaning = "weighted"

    def __init__(self, problem: Problem, batch_dim: int | None = None, micro_batches: int = 1) -> None:
        super().__init__(problem, micro_batches=micro_batches)
        self._reduction = "mean" if batch_dim is None else "none"
        self._engine = Autogram(problem.trunk, batch_dim=batch_dim)
        self._weighting = UPGradWeighting()

    def fill(self) -> None:
        """Compute the Gramian and the weights, and differentiate the weighted losses."""
        losses = torch.stack(self.averaged([self.outputs(p, self._reduction)[1] for p in self.parts]), -1)
        weights = self._weighting(self._engine.compute_gramian(losses))
        losses.backward(weights.reshape(losses.shape))


class Naive(Method):
    """One backward pass per task, and TorchJD's aggregator on the stacked rows."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._aggregator = UPGrad()

    def fill(self) -> None:
        """Differentiate each loss and aggregate the rows."""
        shared = self.problem.shared
        rows: list[Tensor] = []
        for loss, head in zip(self.outputs(self.problem)[1], self.problem.heads, strict=True):
            own = list(head.parameters())
            gradients = torch.autograd.grad(loss, [*shared, *own], retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients[: len(shared)]]))
            add_to_gradients(own, gradients[len(shared) :])
        add_to_gradients(shared, split_like(self._aggregator(torch.stack(rows)), shared))


Make = Callable[[Problem], Method]
MICRO_BATCHES = 4


def step_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return the settings of each method; `weighting` has the keys of ``configs/weighting/upgrad.yaml``."""
    return text_methods(weighting) | {
        "torchjd_autojac": [
            partial(Autojac, chunk=chunk, optimized=optimized)
            for chunk in (1, None)
            for optimized in (True, False)
        ],
        "torchjd_autogram": [AutogramRecipe],
        "naive": [Naive],
    }


def text_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return the methods to measure where one step takes seconds."""
    return {"weighted_sum": [WeightedSum], "ours": [partial(Ours, weighting=weighting)]}


def compiled_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return the methods with and without a compiled trunk."""
    return text_methods(weighting) | {
        "sum_compiled": [partial(WeightedSum, compiled=True)],
        "ours_compiled": [partial(Ours, weighting=weighting, compiled=True)],
    }


def instance_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return the methods with one row per example and task."""
    return {
        "weighted_sum": [WeightedSum],
        "ours": [partial(Ours, weighting=weighting, rows="example")],
        "torchjd_autogram": [partial(AutogramRecipe, batch_dim=0)],
    }


def accumulated_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return the methods with a step of several micro-batches."""
    options: dict[str, Any] = {"micro_batches": MICRO_BATCHES}
    return {
        "weighted_sum": [partial(WeightedSum, **options)],
        "ours": [partial(Ours, weighting=weighting, **options)],
        "torchjd_autojac": [
            partial(Autojac, chunk=chunk, optimized=optimized, together=together, **options)
            for chunk in (1, None)
            for optimized in (True, False)
            for together in (True, False)
        ],
        "torchjd_autogram": [partial(AutogramRecipe, **options)],
    }
