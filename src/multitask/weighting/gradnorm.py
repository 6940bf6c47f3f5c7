from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Layout, WeightedMethod
from multitask.weighting.gramian import checked
from multitask.weighting.layers import closest, is_part, last_layer, layer_of
from multitask.weighting.task_adam import TaskAdam


class GradNorm(WeightedMethod):
    """Weights with mean one, trained so that each weighted gradient norm approaches the mean norm times r^α.

    r is a task's loss relative to its first loss, divided by the mean of that ratio over tasks: slower tasks get larger
    gradients. Norms are taken at the last layer that all losses reach. Each step uses the current weights, also for the
    heads, and then updates them by Adam on Σ |w ‖g‖ − target|.

    "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks" (Chen et al., 2018),
    Algorithm 1.

    Args:
        alpha: α, the strength of the balancing.
        lr: Learning rate of the weights, at least zero.
        layer: Full name of a layer, module or parameter whose gradient norms to use instead.
    """

    of_parameters = True
    per_task: ClassVar[dict[str, Layout]] = {"factors": "factor", "first": "vector"}
    factors: Tensor
    first: Tensor

    def __init__(
        self, tasks: Sequence[str], alpha: float = 1.5, lr: float = 0.025, layer: str | None = None
    ) -> None:
        super().__init__()
        if lr < 0:
            raise ValueError(f"weighting.lr={lr} must not be negative.")
        self.alpha = alpha
        self.layer = layer
        self.keep("factors", torch.ones(len(tasks)))
        self.keep("first", torch.full((len(tasks),), torch.nan))
        self.adam = TaskAdam(len(tasks), lr)

    def check_parameters(self, names: Sequence[str]) -> None:
        if self.layer is not None and not any(is_part(name, self.layer) for name in names):
            known = closest(self.layer, map(layer_of, names))
            raise ValueError(f"weighting.layer={self.layer} is not a layer of the model; choose {known}.")

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        checked(gradients.gramian())
        norms = last_layer(gradients, self.layer, "weighting.layer").gramian().diagonal().clamp(min=0).sqrt()
        used = self.factors
        self.first = torch.where(self.first.isnan(), losses.to(self.first), self.first)
        rates = losses / self.first.to(losses).clamp(min=torch.finfo(losses.dtype).tiny)
        rates = rates / rates.mean().clamp(min=torch.finfo(losses.dtype).tiny)
        weighted = used.to(norms) * norms
        target = weighted.mean() * rates.to(norms) ** self.alpha
        moved = self.adam.step(used, torch.sign(weighted - target) * norms).clamp(min=0)
        total = moved.sum()
        self.factors = moved * (len(moved) / total) if float(total) > 0 else torch.ones_like(moved)
        return used.to(norms)

    def head_weights(self, losses: Tensor) -> Tensor:
        return self.factors
