from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Layout, WeightedMethod
from multitask.weighting.wrapper import Wrapper


class CRMOGM(Wrapper[WeightedMethod], WeightedMethod):
    """λ ← α λ + (1 − α) λ̂, where λ̂ are the weights of another method, whose first weights initialize λ.

    "On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond" (Zhou et al., 2022).

    Args:
        method: The other method, which must give one weight per task.
        alpha: α, the decay of the previous weights, in [0, 1].
    """

    per_task: ClassVar[dict[str, Layout]] = {"smoothed": "vector"}
    smoothed: Tensor

    def __init__(self, tasks: Sequence[str], method: WeightedMethod, alpha: float = 0.9) -> None:
        if not isinstance(method, WeightedMethod) or method.rows == "example":
            raise ValueError("weighting.method must be a weighting that gives one weight per task.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"weighting.alpha={alpha} must lie between 0 and 1.")
        super().__init__(method)
        self.alpha = alpha
        self.keep("smoothed", torch.full((len(tasks), 2 if method.rows == "half" else 1), torch.nan))

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        new = self.method.weigh(losses, gradients)
        by_task = new.view(-1, len(self.smoothed)).T.to(self.smoothed)
        old = torch.where(self.smoothed.isnan(), by_task, self.smoothed)
        self.smoothed = self.alpha * old + (1 - self.alpha) * by_task
        return self.smoothed.T.flatten().to(new)
