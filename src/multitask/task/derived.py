"""Predictions made of other predictions."""

from typing import ClassVar

from torch import Tensor

from multitask.task.seen import Derived, Seen


class PredictionOf(Derived):
    """The prediction of another task: one output that several tasks compare, each by its own loss and target.

    Args:
        task: The other task.
    """

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task

    def forward(self, seen: Seen) -> Tensor:
        """Return what the other task's head returned."""
        return seen.predictions[self.task]


class Derivative(Derived):
    """The derivative of another task's prediction with respect to its example's inputs: forces, −dE/dx.

    It is that of the prediction in its target's own units, whatever ``transform`` the other task trains in.

    Args:
        task: The other task, whose prediction is one number per example.
        factor: A constant factor; −1 makes forces of energies.
        inputs: Which of several inputs; not needed where there is one.
    """

    derivatives: ClassVar[bool] = True

    def __init__(self, task: str, factor: float = 1.0, inputs: str | None = None) -> None:
        super().__init__()
        self.task = task
        self.factor = factor
        self.inputs = inputs

    def forward(self, seen: Seen) -> Tensor:
        """Return the derivative, ``[batch, …]``, as large as the inputs."""
        return self.factor * seen.derivative(seen.in_units(self.task), self.inputs)
