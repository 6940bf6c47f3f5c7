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

CLASSES = 10
_KINK = 2e-4  # relative to the largest gradient; rounding alone causes less than a tenth of it


def _transformer() -> nn.Sequential:
    layers = [
        nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, norm_first=True, batch_first=True)
        for _ in range(2)
    ]
    return nn.Sequential(Patches(7, 64), *layers, Mean())


class _Text(nn.Module):
    """Encoder of token ids ``[batch, tokens]``, averaged over the tokens."""

    def __init__(self, lora: bool) -> None:
        super().__init__()
        # LoRA's usual initialization with zeros would make half of the gradients zero.
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
    """A trunk, the shape of one input, the default batch size, and the vocabulary size if inputs are token ids."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    vocabulary: int = 0


TRUNKS = {
    "mlp": Architecture(lambda: mlp((512, 512, 512)), (784,), 128),
    "lenet": Architecture(lenet, (1, 28, 28), 128),
    "resnet18": Architecture(lambda: resnet(width=32), (3, 64, 64), 32),
    "transformer": Architecture(_transformer, (1, 28, 28), 32),
}
TEXTS = {
    name: Architecture(partial(_Text, lora=name == "lora"), (128,), 8, vocabulary=8192)
    for name in ("text", "lora")
}
"""Trunks that need the extra ``huggingface`` and take seconds per step."""


@dataclass
class Problem:
    """One model and one batch.

    Args:
        name: Name of the trunk.
        trunk: The shared network.
        heads: One linear layer per task.
        batch: ``inputs``, and the classes of task i under ``t<i>``.
    """

    name: str
    trunk: nn.Module
    heads: nn.ModuleList
    batch: dict[str, Tensor]

    @property
    def examples(self) -> int:
        """The number of examples in the batch."""
        return len(self.batch["inputs"])

    @property
    def shared(self) -> list[nn.Parameter]:
        """The trainable parameters of the trunk."""
        return [p for p in self.trunk.parameters() if p.requires_grad]

    @property
    def own(self) -> list[nn.Parameter]:
        """The heads' parameters."""
        return list(self.heads.parameters())

    def copy(self, dtype: torch.dtype | None = None) -> "Problem":
        """Return a deep copy without gradients, optionally in another dtype."""
        other = deepcopy(self)
        other.clear()
        if dtype is not None:
            other.trunk.to(dtype)
            other.heads.to(dtype)
            if other.batch["inputs"].is_floating_point():
                other.batch["inputs"] = other.batch["inputs"].to(dtype)
        return other

    def losses(self, features: Tensor, reduction: str = "mean") -> list[Tensor]:
        """Return the loss of each task."""
        return [
            nn.functional.cross_entropy(head(features), self.batch[f"t{i}"], reduction=reduction)
            for i, head in enumerate(self.heads)
        ]

    def clear(self) -> None:
        """Set all gradients to ``None``."""
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
    """Return a random problem that depends on the arguments alone.

    Problems with a unit so close to the kink of a ReLU that rounding decides its gradient are drawn again, since
    the error would be due to the kink and not to the method.

    ``trunk`` is a key of :data:`TRUNKS` or :data:`TEXTS`, ``tasks`` the number of heads, and ``width`` that of the
    layers of an MLP; ``None`` is the default of the trunk.
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
        inputs = torch.randint(kind.vocabulary, shape) if kind.vocabulary else torch.randn(shape)
        features = network(inputs)
        heads = nn.ModuleList(nn.Linear(features.shape[1], CLASSES) for _ in range(tasks))
        targets = torch.randint(CLASSES, (tasks, examples))
    return Problem(trunk, network, heads, {"inputs": inputs, **{f"t{i}": t for i, t in enumerate(targets)}})


def _at_a_kink(problem: Problem) -> bool:
    """Return whether gradients in float32 differ from those in float64 by more than rounding."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        other = problem.copy(dtype)
        torch.stack(other.losses(other.trunk(other.batch["inputs"]))).sum().backward()
        gradients.append(torch.cat([p.grad.double().flatten() for p in other.shared if p.grad is not None]))
    single, double = gradients
    return bool((single - double).abs().max() > _KINK * double.abs().max())
