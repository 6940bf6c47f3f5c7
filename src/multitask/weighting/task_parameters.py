"""One trainable number per task, each a separate parameter."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from multitask.weighting.base import Combiner, Layout
from multitask.weighting.state import Memory


class TaskParameters(Memory):
    """Scalars initialized to zero, separate so that an optimizer can skip those of absent tasks."""

    per_task: ClassVar[dict[str, Layout]] = {"index": "vector"}

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(tasks))
        # A plain tensor of the participating tasks, not part of the state.
        self.index = torch.arange(tasks)

    def forward(self) -> Tensor:
        """Return the values of the present tasks, shape ``[k]``."""
        return torch.stack([self.values[i] for i in self.index.tolist()])

    def reset(self) -> None:
        for value in self.values:
            nn.init.zeros_(value)


class Learned(Combiner):
    """A combiner with one trainable number per task, in the attribute named by ``learned``."""

    learned: ClassVar[str]

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        setattr(self, self.learned, TaskParameters(len(tasks)))

    @property
    def numbers(self) -> TaskParameters:
        """The trainable numbers; a call returns those of the present tasks, shape ``[k]``."""
        numbers = getattr(self, self.learned)
        assert isinstance(numbers, TaskParameters)
        return numbers

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        return [self.numbers.values[task]]

    def logged_values(self) -> dict[str, Tensor]:
        return {self.learned: self.numbers().detach()}
