from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.weighting.base import Layout, Scalarization
from multitask.weighting.task_adam import TaskAdam

_EPSILON = 1e-8


class FAMO(Scalarization):
    """c Σ z log(L − b), with z = softmax(logits) and c such that the gradients' weights sum to one.

    After each optimizer step the losses are recomputed, and Adam updates the logits so that tasks whose log-loss
    decreased less get larger weights. A loss below its bound b raises ``ValueError``.

    "FAMO: Fast Adaptive Multitask Optimization" (Liu et al., 2023), Algorithm 1.

    Args:
        min_losses: Lower bound b of each loss, shape ``[m]``; zero by default.
        lr: Learning rate of the logits.
        weight_decay: Weight decay of the logits.
    """

    per_task: ClassVar[dict[str, Layout]] = {"logits": "vector", "before": "vector", "min_losses": "vector"}
    logits: Tensor
    before: Tensor
    min_losses: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        min_losses: Tensor | None = None,
        lr: float = 0.025,
        weight_decay: float = 1e-3,
    ) -> None:
        super().__init__()
        bounds = torch.zeros(len(tasks)) if min_losses is None else min_losses
        self.register_buffer("min_losses", bounds, persistent=False)
        self.keep("logits", torch.zeros(len(tasks)))
        self.keep("before", torch.full((len(tasks),), torch.nan))
        self.adam = TaskAdam(len(tasks), lr, weight_decay)

    def forward(self, losses: Tensor) -> Tensor:
        above = self._above(losses)
        z = torch.softmax(self.logits, 0)
        scale = 1 / (z / above.detach()).sum()
        return scale * (z * torch.log(above)).sum()

    def observe(self, losses: Tensor) -> None:
        self.before = losses.detach().to(self.before)

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        """Update the logits by the change of the losses."""
        delta = torch.log(self._above(self.before)) - torch.log(self._above(recompute().detach()))
        z = torch.softmax(self.logits, 0)
        self.logits = self.adam.step(self.logits, z * (delta - (z * delta).sum()))

    def logged_values(self) -> dict[str, Tensor]:
        return {"logits": self.logits}

    def _above(self, losses: Tensor) -> Tensor:
        above = losses - self.min_losses + _EPSILON
        if (above <= 0).any():
            raise ValueError(
                "weighting=famo needs losses above weighting.min_losses, and one is "
                f"{float((losses - self.min_losses).detach().min()):.3g} above it; lower the bound, or choose another "
                "weighting."
            )
        return above
