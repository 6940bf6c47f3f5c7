from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Layout
from multitask.weighting.gramian import checked
from multitask.weighting.simplex import project_onto_simplex
from multitask.weighting.tracked import Tracking


class MoCo(Tracking):
    """y ← y − β (y − g) for each task, λ ← Π(λ − γ (Y Yᵀ + ρ I) λ), and the combined gradient is Yᵀ λ.

    Π is the projection onto the simplex. The step sizes decrease as β / t^βσ, where t counts the steps of the task,
    and γ / t^γσ.

    "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach" (Fernando et al., 2023),
    Algorithm 1.

    Args:
        beta: β, the step size of the tracking, in (0, 1].
        beta_sigma: βσ, the rate at which it decreases.
        gamma: γ, the step size of the weights, above zero.
        gamma_sigma: γσ, the rate at which it decreases.
        rho: ρ, the regularization of the weights, at least zero.
    """

    per_task: ClassVar[dict[str, Layout]] = {"tracked": "vector", "steps": "vector", "shares": "share"}
    tracked: Tensor | None
    steps: Tensor
    shares: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < beta <= 1 or gamma <= 0 or rho < 0:
            raise ValueError(
                f"weighting.beta={beta}, gamma={gamma}, rho={rho}: 0 < β ≤ 1, γ > 0 and ρ ≥ 0 must hold."
            )
        self.beta, self.beta_sigma = beta, beta_sigma
        self.gamma, self.gamma_sigma = gamma, gamma_sigma
        self.rho = rho
        self.keep("steps", torch.zeros(len(tasks)))
        self.keep("shares", torch.full((len(tasks),), 1 / len(tasks)))
        self.keep("tracked", None)

    def combine(self, losses: Tensor, gradients: TaskGradients) -> None:
        jacobian = gradients.jacobian()
        self.steps = self.steps + 1
        rates = (self.beta / self.steps**self.beta_sigma).to(jacobian)
        tracked = self.fitting(self.tracked, jacobian)
        tracked = tracked + rates[:, None] * (jacobian - tracked)
        shares = self.shares.to(jacobian)
        rate = self.gamma / float(self.steps.max()) ** self.gamma_sigma
        step = checked(tracked @ (shares @ tracked) + self.rho * shares)
        shares = project_onto_simplex(shares - rate * step)
        self.tracked, self.shares = tracked, shares.to(self.shares)
        gradients.assign(shares @ tracked)

    def logged_values(self) -> dict[str, Tensor]:
        """Return the weights λ of the tracked gradients."""
        return {"shares": self.shares}
