"""Models of the benchmark: a trunk, one linear head per task, and one batch of random numbers."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from multitask.nn.encoder import Encoder
from multitask.nn.lenet import lenet
from multitask.nn.mlp import mlp
from multitask.nn.resnet import resnet
from multitask.nn.tokens import Mean, Patches
from multitask.randomness import derived_seed
from multitask.task.task import Task

CLASSES = 10
# Of the largest gradient; rounding alone makes less than a tenth of it.
_KINK = 2e-4


def _transformer() -> nn.Sequential:
    layers = [
        nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, norm_first=True, batch_first=True)
        for _ in range(2)
    ]
    return nn.Sequential(Patches(7, 64), *layers, Mean())


class _Text(nn.Module):
    """Token ids ``[batch, tokens]`` → the mean of their states."""

    def __init__(self, lora: bool) -> None:
        super().__init__()
        # Not from zeros, of which half the gradients would be zero.
        updates = {"r": 8, "init_lora_weights": False, "target_modules": ["query", "key", "value", "dense"]}
        self.encoder = Encoder(config=_ENCODER, lora=updates if lora else None)

    def forward(self, ids: Tensor) -> Tensor:
        """Return features ``[batch, width]``."""
        return self.encoder(input_ids=ids).mean(1)


_ENCODER = {
    "model_type": "bert",
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class Architecture:
    """A trunk, the shape of one of its inputs, and the examples of a batch."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    words: int = 0
    """How many token ids there are; none where inputs are real numbers."""


TRUNKS = {
    "mlp": Architecture(lambda: mlp((512, 512, 512)), (784,), 128),
    "lenet": Architecture(lenet, (1, 28, 28), 128),
    "resnet18": Architecture(lambda: resnet(width=32), (3, 64, 64), 32),
    "transformer": Architecture(_transformer, (1, 28, 28), 32),
}
TEXTS = {
    name: Architecture(partial(_Text, lora=name == "lora"), (128,), 8, words=8192)
    for name in ("text", "lora")
}
"""Trunks that need the extra ``huggingface``, and seconds for a step."""


@dataclass
class Problem:
    """One model and one batch.

    Args:
        name: Of the trunk.
        trunk: The shared network.
        heads: One linear layer per task.
        batch: ``inputs``, and the classes of task i as ``t<i>``.
    """

    name: str
    trunk: nn.Module
    heads: nn.ModuleList
    batch: dict[str, Tensor]

    @property
    def examples(self) -> int:
        """Return the number of examples of the batch."""
        return len(self.batch["inputs"])

    @property
    def shared(self) -> list[nn.Parameter]:
        """The trunk's parameters that are trained."""
        return [p for p in self.trunk.parameters() if p.requires_grad]

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
            if other.batch["inputs"].is_floating_point():
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

    None of its units is so near the kink of a ReLU that rounding decides its gradient: an error would tell of
    the kink, not of the method.

    Args:
        trunk: A name among ``TRUNKS`` or ``TEXTS``.
        tasks: How many heads.
        batch: How many examples; ``None`` for the trunk's own number.
        width: Of an MLP's layers; ``None`` for its own.
        device: The device of model and batch.
        seed: Of all numbers.
    """
    for draw in count():
        problem = _drawn(trunk, tasks, batch, width, derived_seed("benchmark", seed, draw))
        if trunk in TEXTS or not _at_a_kink(problem):  # GELU has none
            break
    problem.trunk.to(device)
    problem.heads.to(device)
    problem.batch = {name: values.to(device) for name, values in problem.batch.items()}
    return problem


def _drawn(trunk: str, tasks: int, batch: int | None, width: int | None, seed: int) -> Problem:
    kind = (TRUNKS | TEXTS)[trunk]
    examples = batch or kind.batch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = mlp((width,) * 3) if width else kind.make()
        shape = (examples, *kind.shape)
        inputs = torch.randint(kind.words, shape) if kind.words else torch.randn(shape)
        features = network(inputs)
        heads = nn.ModuleList(nn.Linear(features.shape[1], CLASSES) for _ in range(tasks))
        targets = torch.randint(CLASSES, (tasks, examples))
    return Problem(trunk, network, heads, {"inputs": inputs, **{f"t{i}": t for i, t in enumerate(targets)}})


def _at_a_kink(problem: Problem) -> bool:
    """Return whether single precision gives other gradients than double, by more than it rounds."""
    found = []
    for dtype in (torch.float32, torch.float64):
        other = problem.copy(dtype)
        torch.stack(other.losses(other.trunk(other.batch["inputs"]))).sum().backward()
        found.append(torch.cat([p.grad.double().flatten() for p in other.shared if p.grad is not None]))
    return bool((found[0] - found[1]).abs().max() > _KINK * found[1].abs().max())
