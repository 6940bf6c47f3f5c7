from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multitask.weighting.base import Layout
from multitask.weighting.gramian import Array, CosineMethod, like, per_unit


class GradVac(CosineMethod):
    """The sum of gradients, each rotated towards each other until their cosine reaches the pair's moving average.

    The order of the others is random. ``beta`` is the step size of the averages, in [0, 1].

    "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual Models" (Wang et
    al., 2021), Algorithm 1.
    """

    per_task: ClassVar[dict[str, Layout]] = {"targets": "matrix"}
    targets: Tensor

    def __init__(self, tasks: Sequence[str], beta: float = 0.01) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(f"weighting.beta={beta} must lie between 0 and 1.")
        self.beta = beta
        self.keep("targets", torch.zeros(len(tasks), len(tasks)))

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        targets = self.targets.double().cpu().numpy()
        total = np.zeros(len(C))
        for i in range(len(C)):
            others = [j for j in range(len(C)) if j != i]
            order = [others[j] for j in torch.randperm(len(others)).tolist()]
            total += norms[i] * _rotated(C, i, order, targets[i], self.beta)
        self.targets = like(self.targets, targets)
        return per_unit(total, norms)


def _rotated(C: Array, i: int, order: list[int], targets: Array, beta: float) -> Array:
    """Return the rotated unit gradient i as weights of all unit gradients; updates ``targets`` in place."""
    weights = np.zeros(len(C))
    weights[i] = 1.0
    products = C[i].copy()
    length = float(C[i, i])
    for j in order:
        # Unit gradient j has norm one, or zero, in which case the product is zero.
        cosine = products[j] / length if length > 0 else 0.0
        cosine = min(1.0, max(-1.0, cosine))
        goal = targets[j]
        if C[j, j] > 0 and length > 0 and cosine < goal < 1:
            sine = np.sqrt(1 - cosine**2)
            goal_sine = np.sqrt(1 - goal**2)
            push = length * (goal * sine - cosine * goal_sine) / goal_sine
            weights[j] += push
            length = float(np.sqrt(max(length**2 + 2 * push * products[j] + push**2, 0.0)))
            products = products + push * C[j]
        targets[j] = (1 - beta) * goal + beta * cosine
    return weights
