"""Layer-wise float32 products are as exact as rows, even for large inputs and rows that nearly cancel."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from multitask.gradients import layerwise
from multitask.gradients.examples import ExampleBlock
from multitask.gradients.layerwise import Layerwise
from multitask.gradients.losses import Losses
from multitask.gradients.rows import Rows
from multitask.gradients.task_gradients import Engine
from tests.unit.gradients.rows_of import gradients_of

BATCH = 8
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[float], Tensor]]] = {
    "linear": (lambda: nn.Linear(300, 40), lambda offset: torch.randn(BATCH, 300) + offset),
    "without bias": (lambda: nn.Linear(300, 40, bias=False), lambda offset: torch.randn(BATCH, 300) + offset),
    "tokens": (lambda: nn.Linear(300, 40), lambda offset: torch.randn(BATCH, 6, 300) + offset),
    "conv": (lambda: nn.Conv2d(64, 64, 3), lambda offset: torch.randn(BATCH, 64, 5, 5) + offset),
    "padded conv": (
        lambda: nn.Conv2d(64, 64, 3, padding=1),
        lambda offset: torch.randn(BATCH, 64, 4, 4) + offset,
    ),
    "layer norm": (lambda: nn.LayerNorm(30), lambda offset: torch.randn(BATCH, 6, 30) + offset),
    "group norm": (lambda: nn.GroupNorm(3, 30), lambda offset: torch.randn(BATCH, 30, 6) + offset),
    "embedding": (lambda: nn.Embedding(300, 60), lambda offset: torch.randint(0, 2, (BATCH, 60))),
}

CASES = [(name, over) for name in LAYERS for over in ("nothing", "batch", "positions") if name != "embedding"]
CASES += [("embedding", over) for over in ("nothing", "batch", "words")]


def centered(gradient: Tensor, inputs: Tensor, over: str, by_example: bool) -> Tensor:
    """Center a gradient so that its sum over the batch, the positions or each word nearly cancels."""
    first = 1 if by_example else 0
    if over == "words":
        words = nn.functional.one_hot(inputs, 2).float().flatten(0, -2 - first)
        flat = gradient.flatten(0, 1 - first) if gradient.ndim == 3 else gradient
        sums = words.mT @ flat / words.sum(-2)[..., None]
        return (flat - 0.99 * words @ sums).view_as(gradient)
    last = {2: 1, 3: 2, 4: 4}[gradient.ndim]
    dims = [0] if over == "batch" else [d for d in range(first, last) if gradient.ndim < 4 or d != 1]
    return gradient - gradient.mean(dims, keepdim=True) if dims else gradient


def gramian(
    layer: nn.Module, inputs: Tensor, gradients: list[Tensor], engine: Engine, by_example: bool
) -> Tensor:
    outputs = layer(inputs)
    each = [(outputs * gradient.to(outputs)).flatten(1).sum(1) for gradient in gradients]
    losses = Losses([loss if by_example else loss.sum() for loss in each])
    return gradients_of(engine, losses, list(layer.parameters())).gramian().double()


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("by_example", [False, True])
@pytest.mark.parametrize(("name", "over"), CASES)
def test_as_exact_as_rows(
    name: str, over: str, by_example: bool, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "is_cheaper", lambda *args: True)
    monkeypatch.setattr(ExampleBlock, "gramian", ExampleBlock._paired)
    torch.manual_seed(0)
    make, data = LAYERS[name]
    layer, inputs = make(), data(offset)
    gradients = [torch.randn(layer(inputs).shape) for _ in range(2)]
    if over != "nothing":
        gradients = [centered(gradient, inputs, over, by_example) for gradient in gradients]
    found = gramian(layer, inputs, gradients, Layerwise(), by_example)
    rows = gramian(layer, inputs, gradients, Rows(), by_example)
    exact = inputs.double() if inputs.is_floating_point() else inputs
    expected = gramian(layer.double(), exact, gradients, Rows(), by_example)
    error, of_rows = ((G - expected).abs().max() / expected.abs().max() for G in (found, rows))
    assert error <= 3 * of_rows + 1e-6
