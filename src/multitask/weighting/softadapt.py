"""SoftAdapt: losses that fall least weigh most."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.weighting.base import Scalarization
from multitask.weighting.present import Kind

_EPSILON = 1e-8


class SoftAdapt(Scalarization):
    """Σ w L with w = softmax(β s), s the rate at which a loss changes from step to step.

    The rate is the backward difference of the losses of the steps in which the task had one, as accurate as there
    are losses: zero in the first of them, L − L₋₁ in the second. No gradient flows through the weights.

    "SoftAdapt: Techniques for Adaptive Loss Weighting of Neural Networks with Multi-Part Loss Functions"
    (Heydari, Thompson & Mehmood, 2019), Algorithm 1.

    Args:
        tasks: The tasks' names.
        beta: β; above zero, what falls least weighs most, below zero, what falls most.
        order: Order of the difference: how many earlier losses it is of.
        normalized: Whether the rates are divided by the sum of their absolute values, so that the weights do not
            depend on the losses' scale.
        loss_weighted: Whether weights are also in proportion to the mean of these losses.

    Raises:
        ValueError: If the order is less than one.
    """

    per_task: ClassVar[dict[str, Kind]] = {"history": "vector"}
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
        """Return the scalar to minimize; ``losses`` is ``[k]``.

        Raises:
            ValueError: If weights are to be in proportion to the losses, and one is below zero.
        """
        return (self._weights(losses.detach()) * losses).sum()

    def observe(self, losses: Tensor) -> None:
        """Remember a step's losses."""
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
        # Unknown values are NaN, and so are the differences that they enter.
        total = total + torch.where(difference[:, 0].isnan(), 0.0, difference[:, 0] / j)
    return total
