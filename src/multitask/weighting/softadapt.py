from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.weighting.base import Layout, Scalarization

_EPSILON = 1e-8


class SoftAdapt(Scalarization):
    """Σ w L with w = softmax(β s), where s is the rate of change of a loss per step.

    The rate is a backward difference over the task's last losses, of as high an order as there are losses: zero in its
    first step, L − L₋₁ in its second. No gradient flows through the weights.

    "SoftAdapt: Techniques for Adaptive Loss Weighting of Neural Networks with Multi-Part Loss Functions"
    (Heydari, Thompson & Mehmood, 2019), Algorithm 1.

    Args:
        beta: β; positive values favour losses that decrease least, negative values those that decrease most.
        order: Order of the difference, the number of earlier losses in it, at least one.
        normalized: Whether to divide the rates by the sum of their absolute values, so that the weights do not depend
            on the losses' scale.
        loss_weighted: Whether to multiply the weights by the mean of these losses, which must not be negative.
    """

    per_task: ClassVar[dict[str, Layout]] = {"history": "vector"}
    history: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        beta: float = 0.1,
        order: int = 1,
        normalized: bool = False,
        loss_weighted: bool = False,
    ) -> None:
        if order < 1:
            raise ValueError(f"weighting.order={order} must be at least 1.")
        super().__init__()
        self.beta = beta
        self.order = order
        self.normalized = normalized
        self.loss_weighted = loss_weighted
        self.keep("history", torch.full((len(tasks), order), torch.nan))  # newest first

    def forward(self, losses: Tensor) -> Tensor:
        return (self._weights(losses.detach()) * losses).sum()

    def observe(self, losses: Tensor) -> None:
        newest = losses.detach().to(self.history)[:, None]
        self.history = torch.cat([newest, self.history[:, :-1]], 1)

    def _weights(self, losses: Tensor) -> Tensor:
        values = torch.cat([losses.to(self.history)[:, None], self.history], 1)
        rates = _rates(values)
        if self.normalized:
            rates = rates / (rates.abs().sum() + _EPSILON)
        weights = torch.softmax(self.beta * rates, 0)
        if self.loss_weighted:
            if (losses < 0).any():
                raise ValueError(
                    "weighting.loss_weighted=true needs losses that are not negative, and one is "
                    f"{float(losses.min()):.3g}; set weighting.loss_weighted=false."
                )
            weights = weights * values.nanmean(1)
            weights = weights / (weights.sum() + _EPSILON)
        return weights.to(losses)


def _rates(values: Tensor) -> Tensor:
    """Return the derivative at the newest value, the sum of ∇ʲ/j; ``values`` is ``[k, points]``, newest first."""
    total, difference = torch.zeros_like(values[:, 0]), values
    for j in range(1, values.shape[1]):
        difference = difference[:, :-1] - difference[:, 1:]
        # Missing losses are NaN, and so are the differences that include them.
        total = total + torch.where(difference[:, 0].isnan(), 0.0, difference[:, 0] / j)
    return total
