"""Models of the benchmark: a trunk, one linear head a task, and one batch of random numbers."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multitask.nn.lenet import lenet
from multitask.nn.mlp import mlp
from multitask.nn.resnet import resnet
from multitask.nn.tokens import Mean, Patches
from multitask.task import Batch, Task

CLASSES = 10


def _transformer() -> nn.Sequential:
    layers = [
        nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, norm_first=True, batch_first=True)
        for _ in range(2)
    ]
    return nn.Sequential(Patches(7, 64), *layers, Mean())


@dataclass(frozen=True)
class Kind:
    """A trunk, the shape of one of its inputs, and the examples of a batch."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


TRUNKS = {
    "mlp": Kind(lambda: mlp((512, 512, 512)), (784,), 128),
    "lenet": Kind(lenet, (1, 28, 28), 128),
    "resnet18": Kind(lambda: resnet(width=32), (3, 64, 64), 32),
    "transformer": Kind(_transformer, (1, 28, 28), 32),
}


@dataclass
class Problem:
    """One model and one batch.

    Args:
        name: Of the trunk.
        trunk: The shared network.
        heads: One linear layer a task.
        batch: ``inputs``, and the classes of task i as ``t<i>``.
    """

    name: str
    trunk: nn.Module
    heads: nn.ModuleList
    batch: Batch

    @property
    def examples(self) -> int:
        """How many examples the batch has."""
        return len(self.batch["inputs"])

    @property
    def shared(self) -> list[nn.Parameter]:
        """The trunk's parameters."""
        return list(self.trunk.parameters())

    @property
    def own(self) -> list[nn.Parameter]:
        """The heads' parameters."""
        return list(self.heads.parameters())

    def copy(self, dtype: torch.dtype | None = None) -> "Problem":
        """Return a copy with parameters of its own, without gradients."""
        other = deepcopy(self)
        other.clear()
        if dtype is not None:
            other.trunk.to(dtype)
            other.heads.to(dtype)
            other.batch["inputs"] = other.batch["inputs"].to(dtype)
        return other

    def losses(self, features: Tensor, reduction: str = "mean") -> list[Tensor]:
        """Return each task's loss, as a hand-written loop computes it."""
        return [
            nn.functional.cross_entropy(head(features), self.batch[f"t{i}"], reduction=reduction)
            for i, head in enumerate(self.heads)
        ]

    def tasks(self) -> dict[str, Task]:
        """Return the heads as tasks of this package."""
        return {
            f"t{i}": Task(head, nn.CrossEntropyLoss(), target=f"t{i}") for i, head in enumerate(self.heads)
        }

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in (*self.shared, *self.own):
            parameter.grad = None


def make(
    trunk: str,
    tasks: int,
    batch: int | None = None,
    width: int | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Problem:
    """Return a problem; the same numbers for the same arguments.

    Args:
        trunk: A name among ``TRUNKS``.
        tasks: How many heads.
        batch: How many examples; ``None`` for the trunk's own number.
        width: Of an MLP's layers; ``None`` for its own.
        device: Where everything lies.
        seed: Of all numbers.
    """
    kind = TRUNKS[trunk]
    examples = batch or kind.batch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = mlp((width,) * 3) if width else kind.make()
        inputs = torch.randn(examples, *kind.shape)
        features = network(inputs)
        heads = nn.ModuleList(nn.Linear(features.shape[1], CLASSES) for _ in range(tasks))
        targets = torch.randint(CLASSES, (tasks, examples))
    numbers: Batch = {"inputs": inputs.to(device)}
    numbers |= {f"t{i}": target.to(device) for i, target in enumerate(targets)}
    return Problem(trunk, network.to(device), heads.to(device), numbers)
