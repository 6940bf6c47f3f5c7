"""The reference of a step: plain rows in float64, weighed by TorchJD."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting

from multitask.benchmark.problems import Problem

Meaning = Literal["own", "weighted", "sum"]
"""The meaning of a method's gradients: the trunk's that of UPGrad, the heads' that of their own or of their
weighted loss; or all those of the sum of the mean losses."""


class Reference:
    """The gradients of one problem, from one backward pass per loss in float64.

    Args:
        problem: Its parameters are copied.
        by_example: Whether every example's loss has a row, rather than every task's mean loss.
    """

    def __init__(self, problem: Problem, by_example: bool = False) -> None:
        self._problem = exact = problem.copy(torch.float64)
        features = exact.trunk(exact.batch["inputs"])
        losses = exact.losses(features, "none" if by_example else "mean")
        self._losses = torch.stack(losses, -1).flatten()
        self._jacobian = torch.stack([_gradient(loss, exact.shared) for loss in self._losses])
        self._weights = UPGradWeighting()(self._jacobian @ self._jacobian.T)
        self._mean = 1.0 / exact.examples if by_example else 1.0

    def error(self, found: Problem, meaning: Meaning) -> float:
        """Return the largest error of a gradient, relative to the largest gradient.

        Trunk and heads are each measured by their own largest gradient, and the larger number counts.

        Args:
            found: The problem with the gradients that a method left behind.
            meaning: Their meaning.
        """
        ones = torch.ones_like(self._weights)
        trunk = ones * self._mean if meaning == "sum" else self._weights
        heads = self._weights if meaning == "weighted" else ones * self._mean
        wanted = _gradient(self._losses @ heads, self._problem.own)
        return max(
            _difference(_gathered(found.shared), trunk @ self._jacobian),
            _difference(_gathered(found.own), wanted),
        )


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in found])


def _gathered(parameters: list[nn.Parameter]) -> Tensor:
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([gradient.flatten() for gradient in found]).double()


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())
