"""Methods that update weights by the product of the Jacobians of two halves of the batch."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Layout, Rows, WeightedMethod
from multitask.weighting.gramian import Array, checked, like
from multitask.weighting.simplex import nearest_on_simplex


class HalvesMethod(WeightedMethod):
    """A method with one share per task, updated in each step by ``J₁ J₂ᵀ`` of the two halves, in float64."""

    on_cpu = True
    rows: Rows = "half"
    per_task: ClassVar[dict[str, Layout]] = {"shares": "share"}
    shares: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.keep("shares", torch.full((len(tasks),), 1 / len(tasks)))

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weights of the rows of both halves, shape ``[2k]``."""
        gramian = checked(gradients.gramian())
        k = len(gramian) // 2
        product = gramian[:k, k:].double().cpu().numpy()
        shares, weights = self.move(product, self.shares.double().cpu().numpy())
        self.shares = like(self.shares, shares)
        return like(gramian, np.tile(weights / 2, 2))

    @abstractmethod
    def move(self, product: Array, shares: Array) -> tuple[Array, Array]:
        """Return the new shares and the tasks' weights, both ``[k]``; ``product`` is ``[k, k]``."""


class MoDo(HalvesMethod):
    """λ ← Π(λ − γ (J₁ J₂ᵀ + ρ I) λ), with the projection Π onto the simplex and the Jacobians J₁, J₂ of the halves.

    The combined gradient is that of the mean of the halves' losses, weighted by λ.

    "Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and Conflict-Avoidance" (Chen et al.,
    2023), Equation 2.9.

    Args:
        gamma: γ, the step size of the weights, above zero.
        rho: ρ, the regularization of the weights, at least zero.
    """

    def __init__(self, tasks: Sequence[str], gamma: float = 0.1, rho: float = 0.1) -> None:
        super().__init__(tasks)
        if gamma <= 0 or rho < 0:
            raise ValueError(
                f"weighting.gamma={gamma} must be positive and weighting.rho={rho} not negative."
            )
        self.gamma = gamma
        self.rho = rho

    def move(self, product: Array, shares: Array) -> tuple[Array, Array]:
        step = product @ shares + self.rho * shares
        shares = nearest_on_simplex(shares - self.gamma * step)
        return shares, shares


class SDMGrad(HalvesMethod):
    """Weights (w + λ p) / (1 + λ), with w on the simplex updated by a few descent steps along A (w + λ p).

    A is the product J₁ J₂ᵀ of the halves' Jacobians, divided by the square of the mean root of its diagonal.

    "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms" (Xiao, Ban & Ji, 2023),
    Algorithm 1, with the inner steps of the authors' code.

    Args:
        lr: Step size of w, above zero.
        momentum: Momentum of the steps, in [0, 1).
        n_iter: Number of steps, at least one.
        lambda_: λ, the strength of the preference, at least zero.
        pref_vector: The preference p, shape ``[m]``; 1/m each by default.
    """

    per_task: ClassVar[dict[str, Layout]] = {"shares": "share", "pref_vector": "share"}

    def __init__(
        self,
        tasks: Sequence[str],
        lr: float = 10.0,
        momentum: float = 0.5,
        n_iter: int = 20,
        lambda_: float = 0.3,
        pref_vector: Tensor | None = None,
    ) -> None:
        super().__init__(tasks)
        if lr <= 0 or not 0 <= momentum < 1 or n_iter < 1 or lambda_ < 0:
            raise ValueError(
                f"weighting.lr={lr}, momentum={momentum}, n_iter={n_iter}, lambda_={lambda_}: lr > 0, "
                "0 ≤ momentum < 1, n_iter ≥ 1 and λ ≥ 0 must hold."
            )
        self.lr = lr
        self.momentum = momentum
        self.n_iter = n_iter
        self.lambda_ = lambda_
        equal = torch.full((len(tasks),), 1 / len(tasks))
        self.pref_vector = equal if pref_vector is None else pref_vector / pref_vector.sum()

    def move(self, product: Array, shares: Array) -> tuple[Array, Array]:
        size = np.sqrt(np.clip(np.diagonal(product), 0.0, None)).mean()
        if size > 0:
            product = product / size / size
        pull = self.lambda_ * self.pref_vector.double().cpu().numpy()
        velocity = np.zeros_like(shares)
        for _ in range(self.n_iter):
            velocity = self.momentum * velocity + product @ (shares + pull)
            shares = nearest_on_simplex(shares - self.lr * velocity)
        return shares, (shares + pull) / (1 + self.lambda_)
