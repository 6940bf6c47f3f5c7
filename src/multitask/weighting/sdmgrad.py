"""SDMGrad: weights from two independent halves of the batch, drawn towards a preference."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multitask.weighting.gramian import Array
from multitask.weighting.halves import HalvesMethod
from multitask.weighting.present import Kind
from multitask.weighting.simplex import nearest_on_simplex


class SDMGrad(HalvesMethod):
    """Weights (w + λ p) / (1 + λ), with w on the simplex moved by a few steps against A (w + λ p).

    A is the product J₁ J₂ᵀ of the halves' Jacobians, divided by the square of its mean gradient norm.

    "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms" (Xiao,
    Ban & Ji, 2023), Algorithm 1, with the inner steps of the authors' code.

    Args:
        tasks: The tasks' names.
        lr: Step size of w.
        momentum: Momentum of the steps.
        n_iter: Number of steps.
        lambda_: How much the preference counts.
        pref_vector: The preference p, shape ``[m]``; 1/m each by default.
    """

    per_task: ClassVar[dict[str, Kind]] = {"shares": "share", "pref_vector": "share"}

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
        """Return the shares after some steps, and with the preference."""
        size = np.sqrt(np.clip(np.diagonal(product), 0.0, None)).mean()
        if size > 0:
            product = product / size / size
        pull = self.lambda_ * self.pref_vector.double().cpu().numpy()
        velocity = np.zeros_like(shares)
        for _ in range(self.n_iter):
            velocity = self.momentum * velocity + product @ (shares + pull)
            shares = nearest_on_simplex(shares - self.lr * velocity)
        return shares, (shares + pull) / (1 + self.lambda_)
