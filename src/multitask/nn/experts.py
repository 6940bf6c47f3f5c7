"""Mixtures of experts: MMoE, CGC and PLE."""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from multitask.nn.copies import Make, several


class Gate(nn.Module):
    """Softmax gate, one linear layer: ``[batch, …]`` → weights of the experts ``[batch, experts]``."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(experts, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return weights that sum to one for each example."""
        return self.linear(inputs.flatten(1)).softmax(dim=1)


def mix(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Return the sum of the experts' outputs ``[batch, …]``, weighted by ``[batch, experts]``."""
    return torch.einsum("be,eb...->b...", weights, torch.stack(list(outputs)))


class MMoE(nn.Module):
    """Shared experts, combined by one gate per task.

    (Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, 2018.)

    Args:
        tasks: The tasks' names.
        expert, experts: Factory for an expert, inputs → features, and their number.
    """

    def __init__(self, tasks: Sequence[str], expert: Make, experts: int = 4) -> None:
        super().__init__()
        self.experts = nn.ModuleList(several(expert, experts, "trunk.expert"))
        self.gates = nn.ModuleDict({task: Gate(experts) for task in tasks})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return each task's combination of the experts' features."""
        outputs = [expert(inputs) for expert in self.experts]
        return {task: mix(gate(inputs), outputs) for task, gate in self.gates.items()}


class Extraction(nn.Module):
    """One layer of customized gate control, with task-specific and shared experts.

    A task's gate combines its own and the shared experts; the gate of the shared path, which the last layer lacks,
    combines all experts. ``key`` is the config key of the expert, for errors.
    """

    def __init__(
        self, tasks: Sequence[str], expert: Make, own: int, shared: int, last: bool, key: str
    ) -> None:
        super().__init__()
        experts = several(expert, own * len(tasks) + shared, key)
        self.own = nn.ModuleDict(
            {task: nn.ModuleList(experts[i * own : (i + 1) * own]) for i, task in enumerate(tasks)}
        )
        self.shared = nn.ModuleList(experts[own * len(tasks) :])
        self.gates = nn.ModuleDict({task: Gate(own + shared) for task in tasks})
        self.shared_gate = None if last else Gate(len(experts))

    def forward(
        self, inputs: Mapping[str, Tensor], shared: Tensor
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return each task's features, and the shared features if another layer follows."""
        common = [expert(shared) for expert in self.shared]
        own = {
            task: [expert(inputs[task]) for expert in experts.children()]
            for task, experts in self.own.items()
        }
        mixed = {task: mix(self.gates[task](inputs[task]), own[task] + common) for task in own}
        if self.shared_gate is None:
            return mixed, None
        everything = [*chain.from_iterable(own.values()), *common]
        return mixed, mix(self.shared_gate(shared), everything)


class PLE(nn.Module):
    """Layers of task-specific and shared experts; with one layer this is CGC.

    (Progressive Layered Extraction: A Novel Multi-Task Learning Model for Personalized Recommendations, 2020.)

    Args:
        tasks: The tasks' names.
        layers: Factories for the experts of each layer: inputs → features, features → features, ….
        own, shared: Number of experts per task, and of shared experts, in each layer.
    """

    def __init__(self, tasks: Sequence[str], layers: Sequence[Make], own: int = 2, shared: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Extraction(tasks, expert, own, shared, i == len(layers) - 1, f"trunk.layers.{i}")
            for i, expert in enumerate(layers)
        )
        self._tasks = list(tasks)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return each task's features."""
        features, shared = dict.fromkeys(self._tasks, inputs), inputs
        for layer in self.layers:
            features, shared = layer(features, shared)
        return features
