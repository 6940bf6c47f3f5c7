from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.rows import sent
from multitask.weighting.base import Layout, Scalarization

# They keep ratios to a former loss of zero finite in float32.
_EPSILON = 1e-20
_LARGEST = 1e30


class ReLoBRaLo(Scalarization):
    """Σ λ L with λ ← α (ρ λ + (1 − ρ) b(L₀)) + (1 − α) b(L₋₁), where b(L') = k softmax(L / (τ L')).

    L₀ and L₋₁ are a task's losses in its first and its previous step; in its first step the ratio is one. ρ is a
    random variable, 1 in most steps and 0 in the others, in which λ looks back to the first step. λ starts at ones.
    No gradient flows through λ.

    "Multi-Objective Loss Balancing for Physics-Informed Deep Learning" (Bischof & Kraus, 2021), Equation 11.

    Args:
        alpha: α, the decay of the previous weights, in [0, 1].
        rho: The mean of ρ, the share of steps that do not look back.
        tau: τ, the temperature, above zero; larger values give more equal weights.
    """

    per_task: ClassVar[dict[str, Layout]] = {"factors": "factor", "first": "vector", "last": "vector"}
    factors: Tensor
    first: Tensor
    last: Tensor
    stays: Tensor

    def __init__(
        self, tasks: Sequence[str], alpha: float = 0.95, rho: float = 0.99, tau: float = 1.0
    ) -> None:
        if not 0 <= alpha <= 1 or not 0 <= rho <= 1 or tau <= 0:
            raise ValueError(
                f"weighting.alpha={alpha}, rho={rho}, tau={tau}: 0 ≤ α ≤ 1, 0 ≤ ρ ≤ 1, τ > 0 must hold."
            )
        super().__init__()
        self.alpha = alpha
        self.rho = rho
        self.tau = tau
        self.keep("factors", torch.ones(len(tasks)))
        self.keep("first", torch.full((len(tasks),), torch.nan))
        self.keep("last", torch.full((len(tasks),), torch.nan))
        # Drawn at the end of a step for the next, so that the scalar is a deterministic function of the losses.
        self.keep("stays", torch.ones(()))

    def forward(self, losses: Tensor) -> Tensor:
        return (self._moved(losses.detach()).to(losses) * losses).sum()

    def observe(self, losses: Tensor) -> None:
        """Store the weights and losses of a step, and draw the next ρ."""
        now = losses.detach().to(self.factors)
        self.factors = self._moved(now)
        self.first = torch.where(self.first.isnan(), now, self.first)
        self.last = now
        stays = (torch.rand((), dtype=torch.float64) < self.rho).to(self.stays.dtype)
        self.stays = sent(stays, self.stays.device)

    def _moved(self, losses: Tensor) -> Tensor:
        now = losses.to(self.factors)
        kept = self.stays * self.factors + (1 - self.stays) * self._balance(now, self.first)
        return self.alpha * kept + (1 - self.alpha) * self._balance(now, self.last)

    def _balance(self, now: Tensor, then: Tensor) -> Tensor:
        ratios = now / (self.tau * torch.where(then.isnan(), now, then) + _EPSILON)
        return len(now) * torch.softmax(ratios.clamp(max=_LARGEST), 0)
