from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Layout, WeightedMethod
from multitask.weighting.gramian import checked
from multitask.weighting.tracked import Tracking


class ExcessMTL(Tracking, WeightedMethod):
    """Shares multiplied by exp(η E / E₀) in each step, where E = gᵀ H⁻¹ g estimates a task's excess risk.

    H is the root of the sum of all squared gradients, as in AdaGrad. During warm-up the shares stay equal, and E₀ is
    the mean of E.

    "Robust Multi-Task Learning with Excess Risks" (He et al., 2024), Algorithm 1.

    Args:
        robust_step_size: η, above zero.
        warmup_epochs: Number of warm-up epochs; with 0, E₀ is the E of the first step.
    """

    per_task: ClassVar[dict[str, Layout]] = {
        "squares": "vector",
        "shares": "share",
        "first": "vector",
        "counts": "vector",
    }
    squares: Tensor | None
    shares: Tensor
    first: Tensor
    counts: Tensor
    epochs: Tensor

    def __init__(self, tasks: Sequence[str], robust_step_size: float = 0.01, warmup_epochs: int = 3) -> None:
        super().__init__()
        if robust_step_size <= 0:
            raise ValueError(f"weighting.robust_step_size={robust_step_size} must be positive.")
        if warmup_epochs < 0:
            raise ValueError(f"weighting.warmup_epochs={warmup_epochs} must not be negative.")
        self.robust_step_size = robust_step_size
        self.warmup_epochs = warmup_epochs
        self.keep("shares", torch.full((len(tasks),), 1 / len(tasks)))
        # Sum and number of the excess risks averaged in E₀.
        self.keep("first", torch.zeros(len(tasks)))
        self.keep("counts", torch.zeros(len(tasks)))
        self.keep("epochs", torch.zeros((), dtype=torch.long))
        self.keep("squares", None)

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        jacobian = gradients.jacobian()
        squares = self.fitting(self.squares, jacobian) + jacobian**2
        self.squares = squares
        excess = checked((jacobian**2 / (squares + 1e-7).sqrt()).sum(1))
        warm = int(self.epochs) < self.warmup_epochs
        begins = torch.ones_like(self.counts) if warm else (self.counts == 0).to(self.counts)
        self.first = self.first + begins * excess.to(self.first)
        self.counts = self.counts + begins
        if not warm:
            ratio = excess.to(self.first) / (self.first / self.counts + 1e-7)
            self.shares = torch.softmax(torch.log(self.shares) + self.robust_step_size * ratio, 0)
        return self.shares.to(jacobian)

    def on_epoch_end(self) -> None:
        self.epochs += 1
