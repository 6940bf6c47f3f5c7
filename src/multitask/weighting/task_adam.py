from typing import ClassVar

import torch
from torch import Tensor

from multitask.weighting.base import Layout
from multitask.weighting.state import Memory


class TaskAdam(Memory):
    """Adam with moments and step counts per task, which do not change for absent tasks.

    ``tasks`` is their number, and ``weight_decay`` an L2 penalty, added to the gradient.

    "Adam: A Method for Stochastic Optimization" (Kingma & Ba, 2015).
    """

    per_task: ClassVar[dict[str, Layout]] = {"mean": "vector", "square": "vector", "steps": "vector"}
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, tasks: int, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        for name in self.per_task:
            self.keep(name, torch.zeros(tasks))

    def step(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Return the updated values, ``[k]``, given values and gradient, ``[k]``."""
        gradient = gradient.to(values.dtype) + self.weight_decay * values
        self.steps = self.steps + 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        mean = self.mean / (1 - 0.9**self.steps)
        square = self.square / (1 - 0.999**self.steps)
        return values - self.lr * mean / (square.sqrt() + 1e-8)
