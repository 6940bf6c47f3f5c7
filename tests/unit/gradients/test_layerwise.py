"""Layer-wise factors equal one backward pass per row, up to rounding in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multitask.gradients import layerwise
from multitask.gradients.blocks import BlockGradients, ProductBlock
from multitask.gradients.examples import ExampleBlock
from multitask.gradients.layerwise import Layerwise
from multitask.gradients.rows import RowGradients
from multitask.gradients.task_gradients import TaskGradients
from tests.unit.gradients.reference import leaves_of
from tests.unit.gradients.rows_of import Cotangents, assert_same, differentiate, mlp, naive, random_cotangents


def check(
    trunk: nn.Module,
    inputs: Tensor,
    m: int,
    groups: Tensor | None = None,
    count: int = 1,
    factored: int | None = None,
) -> TaskGradients:
    trunk = trunk.double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    outputs = [trunk(inputs)]
    cotangents = random_cotangents(outputs, m, groups, count)
    parameters = leaves_of(trunk)
    J = naive(outputs, cotangents, parameters)
    gradients = differentiate(Layerwise(), outputs, cotangents, parameters)
    assert_same(gradients, J, parameters)
    if factored is not None:
        assert factors(gradients) == factored
    return gradients


def factors(gradients: TaskGradients) -> int:
    """Return how many weights have factors instead of rows."""
    if isinstance(gradients, RowGradients):
        return 0
    assert isinstance(gradients, BlockGradients)
    return sum(isinstance(block, ProductBlock | ExampleBlock) for block in gradients._blocks)


class Transformer(nn.Module):
    """A transformer that returns the features of the first token, or the mean over tokens."""

    def __init__(
        self, batch_first: bool = True, norm_first: bool = False, mean: bool = False, width: int = 16
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.scale = nn.Parameter(torch.ones(width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, batch_first=batch_first, dropout=0.0, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first, self.mean = batch_first, mean

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = (self.embedding(tokens) + self.positions) * self.scale
        hidden = self.encoder(hidden if self.batch_first else hidden.transpose(0, 1))
        hidden = hidden if self.batch_first else hidden.transpose(0, 1)
        return hidden.mean(1) if self.mean else hidden[:, 0]


def convolutions(inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace),
        nn.Conv2d(8, 40, 3, padding=(1, 2), dilation=(1, 2), bias=False),
        nn.ReLU(inplace),
        nn.Conv2d(40, 30, 3),
        nn.ReLU(inplace),
        nn.Flatten(),
    )


@pytest.mark.parametrize("m", [1, 2, 7])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_mlp(m: int, inplace: bool, bias: bool) -> None:
    check(mlp(inplace, bias), torch.randn(6, 40), m, factored=2 if m > 1 else None)


def test_wide_batches_get_rows() -> None:
    check(mlp(), torch.randn(400, 40), 3, factored=0)


def test_linear_layers_of_tokens_count_every_token() -> None:
    trunk = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 60))
    check(trunk, torch.randn(2, 3, 40), 4, factored=2)
    check(trunk, torch.randn(2, 300, 40), 4, factored=0)


@pytest.mark.parametrize("m", [2, 6])
def test_transformer(m: int) -> None:
    found = check(Transformer(width=32), torch.randint(0, 300, (3, 5)), m)
    assert factors(found) >= 5


def test_embedding_skips_the_padding() -> None:
    trunk = nn.Sequential(nn.Embedding(500, 8, padding_idx=3), nn.Flatten(), nn.Tanh())
    check(trunk, torch.tensor([[3, 4, 4], [5, 3, 499]]), 3, factored=1)


@pytest.mark.parametrize("inplace", [False, True])
def test_convolutions_where_the_maps_are_small(inplace: bool) -> None:
    found = check(convolutions(inplace), torch.randn(2, 3, 12, 12), 4)
    assert factors(found) >= 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(40, 20, 2, groups=2),
        nn.Conv2d(40, 20, 3, padding="same"),
        nn.ConvTranspose2d(40, 20, 2),
    ],
)
def test_other_convolutions(layer: nn.Module) -> None:
    check(nn.Sequential(layer, nn.Tanh()), torch.randn(2, 40, 4, 4), 3)


def test_one_dimensional_convolution_gets_rows() -> None:
    check(nn.Sequential(nn.Conv1d(30, 20, 3), nn.Flatten()), torch.randn(2, 30, 6), 3, factored=0)


def test_batch_normalization_between_linear_layers() -> None:
    trunk = nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 30))
    check(trunk, torch.randn(6, 40), 3, factored=2)


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.loop = nn.Linear(40, 40), nn.Linear(40, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.loop(torch.tanh(self.loop(torch.tanh(self.first(x)))))


def test_a_reused_layer_gets_rows_and_the_others_factors() -> None:
    check(Reused(), torch.randn(4, 40), 3, factored=1)


def test_tied_weights_get_rows() -> None:
    trunk = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40))
    trunk[2].weight = trunk[0].weight
    check(trunk, torch.randn(4, 40), 3, factored=1)


class Penalized(nn.Module):
    """Uses the weight outside of its layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(40, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.layer.weight.square().sum()


def test_a_weight_used_outside_its_layer_gets_rows() -> None:
    check(Penalized(), torch.randn(4, 40), 3, factored=0)


def test_a_slice_of_a_weight_gets_rows() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(30, 40))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x[:, :20], self.weight[:, :20])

    check(Sliced(), torch.randn(3, 40), 3, factored=0)


def test_weights_that_enter_untransposed_get_rows() -> None:
    class Untransposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(40, 40))
            self.bias = nn.Parameter(torch.randn(1, 40))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    check(Untransposed(), torch.randn(3, 40), 3, factored=0)


def test_a_bias_broadcast_in_both_dimensions() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(30, 40))
            self.bias = nn.Parameter(torch.randn(1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight.T, beta=1.0)

    check(Broadcast(), torch.randn(3, 40), 3, factored=1)


@pytest.mark.parametrize("numbers", [{"alpha": 2.0}, {"beta": 3.0}])
def test_scaled_products(numbers: dict[str, float]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(40, 30)

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.layer.bias, x, self.layer.weight.T, **numbers)

    check(Scaled(), torch.randn(3, 40), 3, factored=0 if "alpha" in numbers else 1)


def test_parametrized_weights() -> None:
    trunk = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(40, 30)), nn.Tanh(), nn.Linear(30, 30)
    )
    check(trunk, torch.randn(3, 40), 3, factored=1)


def test_hooks_on_weights_and_outputs_are_applied() -> None:
    trunk = mlp().double()
    trunk[0].weight.register_hook(lambda g: 2 * g)
    trunk[2].register_forward_hook(lambda module, args, out: out.register_hook(lambda g: 3 * g) and None)
    check(trunk, torch.randn(4, 40), 3, factored=1)


def test_full_backward_hooks_are_applied() -> None:
    trunk = mlp()
    trunk[2].register_full_backward_hook(lambda module, gradients, outputs: tuple(5 * g for g in gradients))
    check(trunk, torch.randn(4, 40), 3)


def test_checkpointed_layers_get_rows() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = mlp(), nn.Linear(60, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(self.inner, x, use_reentrant=False))

    found = check(Checkpointed(), torch.randn(4, 40), 3)
    assert factors(found) == 1


def test_freezing_and_unfreezing() -> None:
    trunk, inputs = mlp().double(), torch.randn(4, 40).double()
    engine = Layerwise()
    for frozen in [(), (0,), (2,), (0, 2), ()]:
        for i in (0, 2):
            trunk[i].weight.requires_grad_(i not in frozen)
        outputs = [trunk(inputs)]
        cotangents = random_cotangents(outputs, 3)
        parameters = leaves_of(trunk)
        J = naive(outputs, cotangents, parameters)
        assert_same(differentiate(engine, outputs, cotangents, parameters), J, parameters)


def test_unused_parameters_are_zero() -> None:
    trunk = nn.ModuleDict({"used": nn.Linear(40, 30), "unused": nn.Linear(40, 30)}).double()
    outputs = [trunk["used"](torch.randn(4, 40).double())]
    cotangents = random_cotangents(outputs, 3)
    parameters = leaves_of(trunk)
    J = naive(outputs, cotangents, parameters)
    assert_same(differentiate(Layerwise(), outputs, cotangents, parameters), J, parameters)


def test_penalties_and_outputs_that_some_tasks_do_not_use() -> None:
    first, second = nn.Linear(40, 30).double(), nn.Linear(40, 30).double()
    stem = nn.Linear(40, 40).double()
    hidden = torch.tanh(stem(torch.randn(4, 40).double()))
    outputs = [first(hidden), second(hidden)]
    (g,), (h,) = random_cotangents(outputs[:1], 1).by_task[0], random_cotangents(outputs[1:], 1).by_task[0]
    cotangents = Cotangents([[g, None], [None, h], [g, h], [None, None]])
    parameters = [*stem.parameters(), *first.parameters(), *second.parameters()]
    direct = [None, None, None, first.weight.square().sum() + stem.bias.sum()]
    J = naive(outputs, cotangents, parameters, direct)
    gradients = differentiate(Layerwise(), outputs, cotangents, parameters, direct)
    assert factors(gradients) == 2
    assert_same(gradients, J, parameters)


def test_inputs_changed_in_place_raise_as_in_a_backward_pass() -> None:
    layer = nn.Linear(40, 30)
    inputs = torch.randn(4, 40)
    output = layer(inputs)
    inputs.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        differentiate(Layerwise(), [output], random_cotangents([output], 2), list(layer.parameters()))


def test_buffers_are_reused_and_follow_the_shapes() -> None:
    trunk = mlp().double()
    engine = Layerwise()
    for batch, m in [(4, 3), (4, 3), (7, 3), (7, 5), (2, 2)]:
        outputs = [trunk(torch.randn(batch, 40).double())]
        cotangents = random_cotangents(outputs, m)
        J = naive(outputs, cotangents, leaves_of(trunk))
        assert_same(differentiate(engine, outputs, cotangents, leaves_of(trunk)), J, leaves_of(trunk))


def test_autocast_agrees_to_its_rounding() -> None:
    trunk, inputs = mlp(), torch.randn(4, 40)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [trunk(inputs)]
    cotangents = random_cotangents(outputs, 3)
    parameters = leaves_of(trunk)
    J = naive(outputs, cotangents, parameters)
    gradients = differentiate(Layerwise(), outputs, cotangents, parameters)
    assert factors(gradients) == 2
    assert gradients.gramian().dtype == torch.float32
    G = J @ J.T
    assert (gradients.gramian() - G).abs().max() <= 0.02 * G.abs().max()


@pytest.mark.slow
def test_compiled_trunks_get_rows() -> None:
    trunk = mlp().double()
    compiled = torch.compile(trunk, backend="aot_eager")
    with torch._functorch.config.patch(donated_buffer=False):
        outputs = [compiled(torch.randn(4, 40).double())]
        cotangents = random_cotangents(outputs, 3)
        J = naive(outputs, cotangents, leaves_of(trunk))
        gradients = differentiate(Layerwise(), outputs, cotangents, leaves_of(trunk))
    assert factors(gradients) == 0
    assert_same(gradients, J, leaves_of(trunk))


def test_float32_is_as_exact_as_rows() -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256))
    inputs = torch.randn(16, 784)
    outputs = [trunk(inputs)]
    cotangents = random_cotangents(outputs, 3)
    gradients = differentiate(Layerwise(), outputs, cotangents, leaves_of(trunk))
    assert factors(gradients) == 2
    exact = trunk.double()
    outputs = [exact(inputs.double())]
    cotangents = Cotangents([[g.double() for g in row if g is not None] for row in cotangents.by_task])
    J = naive(outputs, cotangents, leaves_of(exact))
    G = J @ J.T
    assert (gradients.gramian() - G).abs().max() <= 3e-6 * G.abs().max()


@pytest.mark.parametrize("m", [2, 3])
def test_halves(m: int) -> None:
    check(mlp(), torch.randn(6, 40), m, groups=torch.arange(6) % 2, count=2, factored=2)


def by_example(trunk: nn.Module, inputs: Tensor, m: int, factored: int | None = None) -> TaskGradients:
    groups = torch.arange(len(inputs))
    return check(trunk, inputs, m, groups, len(inputs), factored)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_examples_of_an_mlp(m: int, inplace: bool, bias: bool) -> None:
    gradients = by_example(mlp(inplace, bias), torch.randn(9, 40), m, factored=2)
    assert isinstance(gradients, BlockGradients)
    assert any(isinstance(block, ExampleBlock) for block in gradients._blocks)


@pytest.mark.parametrize("inplace", [False, True])
def test_examples_of_convolutions(inplace: bool) -> None:
    by_example(convolutions(inplace), torch.randn(5, 3, 12, 12), 2, factored=3)


@pytest.mark.parametrize("batch", [2, 4, 5, 10])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("mean", [True, False])
def test_examples_of_transformers(batch: int, batch_first: bool, norm_first: bool, mean: bool) -> None:
    """For any order of tokens and examples inside, also with as many tokens as examples."""
    trunk = Transformer(batch_first, norm_first, mean)
    by_example(trunk, torch.randint(0, 300, (batch, 5)), 2, factored=9)


def test_examples_of_images_as_patches() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 4, stride=4)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 12)

        def forward(self, x: Tensor) -> Tensor:
            patches = self.stem(x).flatten(2).transpose(1, 2)
            hidden = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
            return self.last(self.norm(hidden).softmax(1)).mean(1)

    by_example(Patches(), torch.randn(5, 1, 8, 8), 2, factored=2)


@pytest.mark.parametrize(
    "mix",
    [
        nn.BatchNorm1d(50, affine=False),
        nn.BatchNorm1d(50),
        type("MinusMean", (nn.Module,), {"forward": lambda self, x: x - 1e-3 * x.mean(0)})(),
        type("Neighbour", (nn.Module,), {"forward": lambda self, x: x + 1e-3 * x.roll(1, 0)})(),
    ],
)
def test_dependent_examples_are_detected(mix: nn.Module) -> None:
    """One backward pass per task would be wrong, so each example gets its own."""
    trunk = nn.Sequential(nn.Linear(40, 50), mix, nn.Tanh(), nn.Linear(50, 30))
    gradients = by_example(trunk, torch.randn(6, 40), 2)
    assert not any(isinstance(b, ExampleBlock) for b in getattr(gradients, "_blocks", []))


def test_examples_in_another_order_or_number() -> None:
    for groups, count in [(torch.tensor([2, 0, 1, 3]), 4), (torch.tensor([0, 0, 1, 2]), 4)]:
        gradients = check(mlp(), torch.randn(4, 40), 2, groups, count)
        assert not any(isinstance(b, ExampleBlock) for b in getattr(gradients, "_blocks", []))


def test_examples_of_a_reused_layer_get_rows() -> None:
    gradients = by_example(Reused(), torch.randn(4, 40), 2)
    assert not any(isinstance(b, ExampleBlock) for b in getattr(gradients, "_blocks", []))


def test_examples_without_a_gradient() -> None:
    """Unlabelled examples have zero gradients."""
    trunk = Transformer().double()
    outputs = [trunk(torch.randint(0, 300, (6, 5)))]
    cotangents = random_cotangents(outputs, 2, torch.arange(6), 6)
    for row in cotangents.by_task:
        assert row[0] is not None
        row[0][[0, 1, 3, 4, 5]] = 0.0
    J = naive(outputs, cotangents, leaves_of(trunk))
    gradients = differentiate(Layerwise(), outputs, cotangents, leaves_of(trunk))
    assert_same(gradients, J, leaves_of(trunk))


def test_random_state_is_unchanged() -> None:
    trunk = mlp()
    outputs = [trunk(torch.randn(4, 40))]
    cotangents = random_cotangents(outputs, 2, torch.arange(4), 4)
    before = torch.get_rng_state()
    differentiate(Layerwise(), outputs, cotangents, leaves_of(trunk))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("make", [lambda: Transformer(), lambda: Transformer(batch_first=False)])
def test_both_ways_to_the_gramian_of_examples(
    formed: bool, make: Callable[[], nn.Module], monkeypatch
) -> None:
    monkeypatch.setattr("multitask.gradients.examples._CHUNK", 500)  # several parts
    other = "_paired" if formed else "_formed"
    monkeypatch.setattr(ExampleBlock, other, getattr(ExampleBlock, "_formed" if formed else "_paired"))
    by_example(make(), torch.randint(0, 300, (4, 5)), 2)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the backward passes that differentiate all rows at once."""
    calls: list[int] = []
    vmap = torch.vmap
    monkeypatch.setattr(torch, "vmap", lambda *args: calls.append(1) or vmap(*args))
    return calls


@pytest.mark.parametrize(
    "activation",
    [nn.ELU(), nn.GELU(), nn.LeakyReLU(), nn.ReLU(), nn.ReLU(True), nn.SiLU(), nn.Sigmoid(), nn.Softplus(), nn.Tanh()],
)  # fmt: skip
@pytest.mark.parametrize("batch", [6, 400])
def test_all_rows_at_once_through_linear_layers(
    activation: nn.Module, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small batch gives factors, a large one rows that are formed at once."""
    calls = counted(monkeypatch)
    trunk = nn.Sequential(nn.Linear(40, 50), activation, nn.Linear(50, 60, bias=False), nn.Tanh())
    check(trunk, torch.randn(batch, 40), 3, factored=2 if batch == 6 else 0)
    assert calls == [1]


def test_all_rows_at_once_with_a_scale_and_a_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(40, 50)
            self.scale, self.shift = nn.Parameter(torch.randn(50)), nn.Parameter(torch.randn(1))
            self.unused = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(x)) * self.scale + self.shift

    calls = counted(monkeypatch)
    check(Scaled(), torch.randn(4, 40), 3, factored=1)
    assert calls == [1]


def test_hooks_see_one_row_at_a_time_in_a_pass_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    trunk = mlp()
    trunk[2].register_forward_hook(
        lambda module, args, out: out.register_hook(lambda g: g / (1 + g.square().sum())) and None
    )
    check(trunk, torch.randn(4, 40), 3)
    assert calls == [1]


def test_hooks_that_read_values_get_one_row_at_a_time() -> None:
    seen: list[float] = []
    trunk = mlp()
    trunk[2].register_forward_hook(
        lambda module, args, out: out.register_hook(lambda g: seen.append(g.norm().item())) and None
    )
    check(trunk, torch.randn(4, 40), 3)
    assert len(seen) == 2 * 3  # of the step and of the reference


def test_rows_of_different_outputs_are_differentiated_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    layer, inputs = nn.Linear(40, 30).double(), torch.randn(4, 40).double()
    outputs = [layer(inputs), torch.tanh(layer(inputs))]
    (g,), (h,) = random_cotangents(outputs[:1], 1).by_task[0], random_cotangents(outputs[1:], 1).by_task[0]
    cotangents = Cotangents([[g, None], [None, h]])
    J = naive(outputs, cotangents, list(layer.parameters()))
    assert_same(
        differentiate(Layerwise(), outputs, cotangents, list(layer.parameters())), J, list(layer.parameters())
    )
    assert not calls


def test_the_choice_of_rows_is_cached() -> None:
    """The cache is keyed by the shapes of the outputs; rows are exact for any network with these shapes."""
    engine = Layerwise()
    for trunk, inputs in [
        (nn.Conv1d(3, 6, 1), torch.randn(4, 3, 9)),
        (nn.Conv1d(3, 6, 3, padding=1), torch.randn(4, 3, 9)),
        (nn.Conv1d(8, 6, 1), torch.randn(4, 8, 9)),
    ]:
        trunk, inputs = trunk.double(), inputs.double()
        outputs = [trunk(inputs)]
        cotangents = random_cotangents(outputs, 3)
        J = naive(outputs, cotangents, leaves_of(trunk))
        gradients = differentiate(engine, outputs, cotangents, leaves_of(trunk))
        assert isinstance(gradients, RowGradients)
        assert_same(gradients, J, leaves_of(trunk))


@pytest.mark.parametrize(
    "geometry", [{}, {"stride": 2, "padding": (2, 1)}, {"dilation": (1, 2), "bias": False}]
)
def test_convolutions_of_few_channels_are_formed_row_by_row(
    geometry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For many positions, and numbers of channels that are not a multiple of sixteen."""
    formed: list[int] = []
    make = layerwise.form
    monkeypatch.setattr(layerwise, "form", lambda *args: formed.append(1) or make(*args))
    trunk = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(6, 7, (3, 2), **geometry),
        nn.ReLU(True),
        nn.Flatten(),
    )
    check(trunk, torch.randn(5, 3, 20, 20), 7, factored=0)
    assert len(formed) == 7
    check(trunk, torch.randn(5, 3, 20, 20), 2, factored=0)
    assert len(formed) == 7, "not worthwhile for few rows"


def test_a_row_that_does_not_reach_a_convolution_has_zeros() -> None:
    first, second = nn.Conv2d(6, 7, 3).double(), nn.Linear(6, 4).double()
    images = torch.randn(5, 6, 12, 12).double()
    outputs = [first(images), second(images.mean((2, 3)))]
    (g, h) = random_cotangents(outputs, 1).by_task[0]
    cotangents = Cotangents([[None, h], [g, None], [g, h]] * 3)
    parameters = [*first.parameters(), *second.parameters()]
    J = naive(outputs, cotangents, parameters)
    assert_same(differentiate(Layerwise(), outputs, cotangents, parameters), J, parameters)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_inputs_get_rows(layout: torch.layout) -> None:
    weight, x = nn.Parameter(torch.randn(4, 50).double()), torch.eye(6, 50).double().to_sparse(layout=layout)
    outputs = [x @ weight.T]
    cotangents = random_cotangents(outputs, 2)
    J = naive(outputs, cotangents, [weight])
    assert_same(differentiate(Layerwise(), outputs, cotangents, [weight]), J, [weight])
