"""Hard sharing with one branch per task."""

from collections.abc import Sequence

from torch import Tensor, nn

from multitask.nn.copies import Make, one_per_task


class Branches(nn.Module):
    """A shared network followed by one network per task (Multitask Learning, 1997).

    Args:
        tasks: The tasks' names.
        shared: Inputs → shared features.
        branch: Factory for a task's network: shared features → the task's features.
    """

    def __init__(self, tasks: Sequence[str], shared: nn.Module, branch: Make) -> None:
        super().__init__()
        self.shared = shared
        self.branches = one_per_task(branch, tasks, "trunk.branch")

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return each task's features."""
        features = self.shared(inputs)
        return {task: branch(features) for task, branch in self.branches.items()}
