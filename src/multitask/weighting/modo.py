"""MoDo: weights from two independent halves of the batch."""

from collections.abc import Sequence

from multitask.weighting.gramian import Array
from multitask.weighting.halves import HalvesMethod
from multitask.weighting.simplex import nearest_on_simplex


class MoDo(HalvesMethod):
    """λ ← Π(λ − γ (J₁ J₂ᵀ + ρ I) λ), with Π the projection onto the simplex and J₁, J₂ of the two halves.

    The combined gradient is that of the mean of the halves' losses, weighted by λ.

    "Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and
    Conflict-Avoidance" (Chen et al., 2023), Equation 2.9.

    Args:
        tasks: The tasks' names.
        gamma: Step size of the weights.
        rho: Regularization of the weights.
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
        """Return the shares after a step, twice."""
        step = product @ shares + self.rho * shares
        shares = nearest_on_simplex(shares - self.gamma * step)
        return shares, shares
