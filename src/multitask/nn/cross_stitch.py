"""One network per task, with learned mixing of features between the stages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from multitask.nn.copies import Make, several


class Stitch(LazyModuleMixin, nn.Module):
    """Learned linear combination of the tasks' features, one square matrix per channel.

    ``own`` is the initial weight of a task's own features; the others share the rest equally.
    """

    cls_to_become = None
    weight: nn.UninitializedParameter | nn.Parameter

    def __init__(self, tasks: int, own: float = 0.9) -> None:
        super().__init__()
        self.tasks = tasks
        self.own = own
        self.weight = nn.UninitializedParameter()

    def reset_parameters(self) -> None:
        """Set the initial weights."""
        if self.has_uninitialized_params():
            return
        other = (1.0 - self.own) / max(1, self.tasks - 1)
        with torch.no_grad():
            self.weight.fill_(other)
            self.weight.diagonal(dim1=1, dim2=2).fill_(self.own if self.tasks > 1 else 1.0)

    def initialize_parameters(self, features: Tensor) -> None:
        """Infer the number of channels from the first features ``[tasks, batch, channels, …]``."""
        if isinstance(self.weight, nn.UninitializedParameter):
            self.weight.materialize((features.shape[2], self.tasks, self.tasks))
            self.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Mix features ``[tasks, batch, channels, …]`` over the tasks."""
        return torch.einsum("cij,jbc...->ibc...", self.weight, features)


class CrossStitch(nn.Module):
    """One network of several stages per task, with a unit that mixes their features after every stage.

    (Cross-stitch Networks for Multi-task Learning, 2016.)

    Args:
        tasks: The tasks' names.
        stages: Factories for the stages, in order; features are ``[batch, channels, …]``.
        own: Initial weight of a task's own features; outside [0, 1] it raises ``ValueError``.
    """

    def __init__(self, tasks: Sequence[str], stages: Sequence[Make], own: float = 0.9) -> None:
        super().__init__()
        if not 0.0 <= own <= 1.0:
            raise ValueError(f"trunk.own={own} must lie in [0, 1].")
        self.stages = nn.ModuleList(
            nn.ModuleList(several(stage, len(tasks), f"trunk.stages.{i}")) for i, stage in enumerate(stages)
        )
        self.stitches = nn.ModuleList(Stitch(len(tasks), own) for _ in stages)
        self._tasks = list(tasks)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return each task's features."""
        features: Sequence[Tensor] = [inputs] * len(self._tasks)
        for stage, stitch in zip(self.stages, self.stitches, strict=True):
            by_task = zip(stage.children(), features, strict=True)
            features = stitch(torch.stack([network(x) for network, x in by_task])).unbind()
        return dict(zip(self._tasks, features, strict=True))
