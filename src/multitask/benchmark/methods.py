"""The ways to one step: a forward pass, and the ``.grad`` of every parameter. No optimizer moves."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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
    """One way to a step of a problem.

    Args:
        problem: Its parameters become this method's own.
        compiled: Whether the trunk runs by ``torch.compile``.
    """

    meaning: Meaning = "own"

    def __init__(self, problem: Problem, compiled: bool = False) -> None:
        self.problem = problem
        self.trunk: Callable[[Tensor], Tensor] = problem.trunk
        if compiled:
            keep_buffers_of_backward()
            self.trunk = torch.compile(problem.trunk)

    def step(self) -> None:
        """Compute the gradients again."""
        self.problem.clear()
        self.fill()

    @abstractmethod
    def fill(self) -> None:
        """Write the gradients of all parameters."""


class WeightedSum(Method):
    """One backward pass of the sum: what every ratio is relative to."""

    meaning = "sum"

    def fill(self) -> None:
        """Differentiate the sum of the losses."""
        features = self.trunk(self.problem.batch["inputs"])
        torch.stack(self.problem.losses(features)).sum().backward()


class Ours(Method):
    """The step of this package, as training takes it.

    Args:
        problem: See :class:`Method`.
        weighting: The keys of ``configs/weighting/upgrad.yaml``.
        rows: ``task`` for one row per task, ``example`` for instance-wise steps.
        compiled: See :class:`Method`.
        options: As for :class:`Step`.
    """

    def __init__(
        self,
        problem: Problem,
        weighting: Mapping[str, Any],
        rows: str = "task",
        compiled: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(problem, compiled)
        self._rows = rows
        combiner = build_weighting({**weighting, "rows": rows}, list(problem.tasks()))
        device = next(problem.trunk.parameters()).device
        self._step = Step(combiner.to(device), shared=problem.shared if compiled else None, **options)

    def fill(self) -> None:
        """Take the whole step, all but the optimizer's."""
        features = self.trunk(self.problem.batch["inputs"])
        self._step.backward(self.problem.losses(features, "none" if self._rows == "example" else "mean"))


class Autojac(Method):
    """TorchJD's ``mtl_backward`` and ``jac_to_grad``.

    Args:
        problem: See :class:`Method`.
        chunk: Rows differentiated together by vmap; ``None`` for all, 1 for one after the other.
        optimized: Whether the Gramian is summed over the parameters, without the whole Jacobian.
    """

    def __init__(self, problem: Problem, chunk: int | None, optimized: bool) -> None:
        super().__init__(problem)
        self._chunk = chunk
        self._optimized = optimized
        self._aggregator = UPGrad()

    def fill(self) -> None:
        """Compute the Jacobian and aggregate it."""
        features = self.problem.trunk(self.problem.batch["inputs"])
        mtl_backward(self.problem.losses(features), features=features, parallel_chunk_size=self._chunk)
        jac_to_grad(self.problem.shared, self._aggregator, optimize_gramian_computation=self._optimized)


class AutogramRecipe(Method):
    """TorchJD's documented recipe with its ``Engine``: Gramian, weights, backward pass of the weighted sum.

    Args:
        problem: See :class:`Method`.
        batch_dim: As the engine's; 0 for losses of single examples.
    """

    meaning = "weighted"

    def __init__(self, problem: Problem, batch_dim: int | None = None) -> None:
        super().__init__(problem)
        self._reduction = "mean" if batch_dim is None else "none"
        self._engine = Autogram(problem.trunk, batch_dim=batch_dim)
        self._weighting = UPGradWeighting()

    def fill(self) -> None:
        """Compute the Gramian, weigh, and differentiate the weighted losses."""
        features = self.problem.trunk(self.problem.batch["inputs"])
        losses = torch.stack(self.problem.losses(features, self._reduction), -1)
        weights = self._weighting(self._engine.compute_gramian(losses))
        losses.backward(weights.reshape(losses.shape))


class Naive(Method):
    """One backward pass per task from its loss, the rows stacked, TorchJD's aggregator on the matrix."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._aggregator = UPGrad()

    def fill(self) -> None:
        """Differentiate every loss by itself."""
        shared = self.problem.shared
        features = self.problem.trunk(self.problem.batch["inputs"])
        rows: list[Tensor] = []
        for loss, head in zip(self.problem.losses(features), self.problem.heads, strict=True):
            own = list(head.parameters())
            found = torch.autograd.grad(loss, [*shared, *own], retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in found[: len(shared)]]))
            add_to_gradients(own, found[len(shared) :])
        add_to_gradients(shared, split_like(self._aggregator(torch.stack(rows)), shared))


Make = Callable[[Problem], Method]


def step_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return what makes each method; of several settings of one the fastest counts."""
    return {
        "weighted_sum": [WeightedSum],
        "ours": [partial(Ours, weighting=weighting)],
        "torchjd_autojac": [
            partial(Autojac, chunk=chunk, optimized=optimized)
            for chunk in (1, None)
            for optimized in (True, False)
        ],
        "torchjd_autogram": [AutogramRecipe],
        "naive": [Naive],
    }


def text_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return the methods that are measured where each step takes seconds."""
    return {"weighted_sum": [WeightedSum], "ours": [partial(Ours, weighting=weighting)]}


def compiled_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return the methods with and without a compiled trunk."""
    return text_methods(weighting) | {
        "sum_compiled": [partial(WeightedSum, compiled=True)],
        "ours_compiled": [partial(Ours, weighting=weighting, compiled=True)],
    }


def instance_methods(weighting: Mapping[str, Any]) -> dict[str, list[Make]]:
    """Return the methods that weigh the losses of all examples and tasks."""
    return {
        "weighted_sum": [WeightedSum],
        "ours": [partial(Ours, weighting=weighting, rows="example")],
        "torchjd_autogram": [partial(AutogramRecipe, batch_dim=0)],
    }
