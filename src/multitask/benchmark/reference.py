"""The reference of a step: rows of the Jacobian in float64, weighted by TorchJD."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting

from multitask.benchmark.problems import Problem

Meaning = Literal["own", "weighted", "sum"]
"""The losses that a method differentiates: for the trunk those weighted by UPGrad, and for each head its loss
(``own``) or its weighted loss (``weighted``); or the sum of the mean losses for all parameters (``sum``)."""


class Reference:
    """The gradients of one problem, from one backward pass per loss in float64.

    Args:
        problem: The problem; its parameters are copied.
        by_example: Whether rows are those of single examples' losses, not of the tasks' mean losses.
    """

    def __init__(self, problem: Problem, by_example: bool = False) -> None:
        self._problem = exact = problem.copy(torch.float64)
        features = exact.trunk(exact.batch["inputs"])
        losses = exact.losses(features, "none" if by_example else "mean")
        self._losses = torch.stack(losses, -1).flatten()
        self._jacobian = torch.stack([_gradient(loss, exact.shared) for loss in self._losses])
        self._weights = UPGradWeighting()(self._jacobian @ self._jacobian.T)
        self._mean = torch.full_like(self._weights, 1.0 / exact.examples if by_example else 1.0)

    def error(self, problem: Problem, meaning: Meaning) -> float:
        """Return the largest absolute error of a gradient, relative to the largest gradient.

        Trunk and heads are compared separately; the larger of their errors is returned.

        ``problem`` has the ``.grad`` fields that a method filled.
        """
        trunk = self._mean if meaning == "sum" else self._weights
        heads = self._weights if meaning == "weighted" else self._mean
        return max(
            _difference(problem.shared, trunk @ self._jacobian),
            _difference(problem.own, _gradient(self._losses @ heads, self._problem.own)),
        )


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in gradients])


def _difference(parameters: list[nn.Parameter], expected: Tensor) -> float:
    filled = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    actual = torch.cat([gradient.flatten() for gradient in filled]).double()
    return float((actual - expected).abs().max() / expected.abs().max())
