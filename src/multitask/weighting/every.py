"""Weights that are recomputed every few steps only."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import WeightedMethod
from multitask.weighting.present import Kind
from multitask.weighting.wrapper import Wrapper


class Every(Wrapper[WeightedMethod], WeightedMethod):
    """Another method's weights, kept for ``steps`` optimizer steps.

    A task that has no weight yet, since it was absent when they were computed, has all recomputed.

    Args:
        tasks: The tasks' names.
        method: The other method.
        steps: How long weights are kept.

    Raises:
        ValueError: If the method gives no weights, or none a task.
    """

    per_task: ClassVar[dict[str, Kind]] = {"kept": "vector", "factors": "vector"}
    kept: Tensor
    factors: Tensor
    age: Tensor

    def __init__(self, tasks: Sequence[str], method: WeightedMethod, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"weighting.every={steps} must be at least 1.")
        if not isinstance(method, WeightedMethod) or method.rows == "example":
            raise ValueError(
                f"weighting.every={steps} needs a weighting that gives one weight per task; leave "
                "weighting.every=1."
            )
        super().__init__(method)
        self.steps = steps
        self.keep("kept", torch.full((len(tasks), 2 if method.rows == "half" else 1), torch.nan))
        self.keep("factors", torch.full((len(tasks),), torch.nan))
        self.keep("age", torch.zeros((), dtype=torch.long))

    def head_weights(self, losses: Tensor) -> Tensor | None:
        """Return the heads' factors, kept as long as the weights that they belong to."""
        if self._is_due():
            factors = self.method.head_weights(losses)
            none = torch.full_like(self.factors, torch.nan)
            self.factors = none if factors is None else factors.to(self.factors)
        return None if bool(self.factors.isnan().any()) else self.factors.to(losses)

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the kept weights, recomputed when they are old."""
        if self._is_due():
            self.age = torch.zeros_like(self.age)
            weights = self.method.weigh(losses, gradients)
            self.kept = weights.view(-1, len(self.kept)).T.to(self.kept)
        self.age = self.age + 1
        return self.kept.T.flatten().to(losses)

    def _is_due(self) -> bool:
        return int(self.age) % self.steps == 0 or bool(self.kept.isnan().any())
