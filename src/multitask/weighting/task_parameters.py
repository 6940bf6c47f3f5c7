"""One trainable number a task, each a parameter of its own."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from multitask.weighting.present import Kind


class TaskParameters(nn.Module):
    """Scalars that start at zero, apart so that an optimizer can leave an absent task's alone.

    Args:
        tasks: How many there are.
    """

    per_task: ClassVar[dict[str, Kind]] = {"index": "vector"}

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(tasks))
        # A plain tensor: which of the values take part, and no part of the state.
        self.index = torch.arange(tasks)

    def forward(self) -> Tensor:
        """Return the values of the present tasks, shape ``[k]``."""
        return torch.stack([self.values[i] for i in self.index.tolist()])

    def reset(self) -> None:
        """Set every value to zero."""
        with torch.no_grad():
            for value in self.values:
                value.zero_()
