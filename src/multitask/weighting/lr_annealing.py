from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Layout, WeightedMethod
from multitask.weighting.gramian import checked


class LRAnnealing(WeightedMethod):
    """Learning-rate annealing: the residual's gradient plus Σ λ g, with λ ← α λ + (1 − α) max |g_r| / mean |g|.

    The maximum of the residual's gradient and the mean of the other are over all shared parameters. λ starts at ones
    and is updated before use. It does not change for a task whose gradient is zero, nor without the residual.
    ``weighting.every=k`` updates it every k steps; the authors' code uses ten.

    "Understanding and Mitigating Gradient Flow Pathologies in Physics-Informed Neural Networks" (Wang, Teng &
    Perdikaris, 2021), Algorithm 1, with α as the decay of the previous weights, as in the authors' code.

    Args:
        residual: Name of the residual's loss, whose weight is one; the first by default.
        alpha: α, the decay of the previous weights, in [0, 1].
    """

    of_parameters = True
    per_task: ClassVar[dict[str, Layout]] = {"factors": "vector", "is_residual": "vector"}
    factors: Tensor
    is_residual: Tensor

    def __init__(self, tasks: Sequence[str], residual: str | None = None, alpha: float = 0.9) -> None:
        residual = tasks[0] if residual is None else residual
        if residual not in tasks:
            raise ValueError(
                f"weighting.residual={residual} is not a task; choose one of {', '.join(tasks)}."
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"weighting.alpha={alpha} must lie between 0 and 1.")
        super().__init__()
        self.alpha = alpha
        self.register_buffer("is_residual", torch.tensor([t == residual for t in tasks]), persistent=False)
        self.keep("factors", torch.ones(len(tasks)))

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        gradients = gradients.local
        sizes = gradients.jacobian().abs()
        count = gradients.total(sizes.new_tensor(sizes.shape[1]))
        means = checked((gradients.total(sizes.sum(1)) / count).to(self.factors))
        largest = sizes.amax(1) if sizes.shape[1] else sizes.sum(1)
        # Zero if the residual is absent.
        greatest = (gradients.greatest(largest).to(self.factors) * self.is_residual).sum()
        unchanged = self.is_residual | (means == 0) | (greatest == 0)
        updated = self.alpha * self.factors + (1 - self.alpha) * greatest / torch.where(unchanged, 1.0, means)
        self.factors = torch.where(unchanged, self.factors, updated)
        return self.factors.to(sizes)
