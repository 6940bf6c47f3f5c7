"""Predictions derived from other predictions."""

from typing import ClassVar

from torch import Tensor

from multitask.task.seen import Derived, Seen


class PredictionOf(Derived):
    """The prediction of another task, for several tasks that compare one output with different targets or losses."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task

    def forward(self, seen: Seen) -> Tensor:
        """Return the output of the other task's head."""
        return seen.predictions[self.task]


class Derivative(Derived):
    """The derivative of another task's prediction with respect to the inputs, such as forces −dE/dx.

    The prediction is taken in the units of its target, before any ``transform`` of the other task.

    Args:
        task: The other task, whose prediction is one number per example.
        factor: A constant factor; −1 turns energies into forces.
        inputs: The name of the input, if there are several.
    """

    derivatives: ClassVar[bool] = True

    def __init__(self, task: str, factor: float = 1.0, inputs: str | None = None) -> None:
        super().__init__()
        self.task = task
        self.factor = factor
        self.inputs = inputs

    def forward(self, seen: Seen) -> Tensor:
        """Return the derivative, in the shape of the inputs."""
        return self.factor * seen.derivative(seen.in_units(self.task), self.inputs)
