"""The layer at which GradNorm measures gradients, and groups of parameters by their full names."""

import copy

import pytest
import torch
from torch import Tensor, nn

from multitask import Step
from multitask.weighting.grouped import Grouped
from tests.unit.weighting.members import N, Toy, ToyTraining, conflicting, losses_of, make, update


class Model(nn.Module):
    """A trunk whose layers run in another order than registered, and whose last one is unused."""

    def __init__(self) -> None:
        super().__init__()
        trunk = nn.ModuleDict({"last": nn.Linear(5, 4), "first": nn.Linear(3, 5), "unused": nn.Linear(4, 7)})
        self.trunk = trunk.double()
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2)).double()

    def forward(self, x: Tensor) -> list[Tensor]:
        features = torch.tanh(self.trunk["last"](torch.tanh(self.trunk["first"](x))))
        return [head(features).pow(2).mean() for head in self.heads]


def batch(seed: int = 0) -> Tensor:
    return torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def factors(model: nn.Module, layer: str | None = None, steps: int = 3) -> Tensor:
    """Return GradNorm's weights after some steps on one batch."""
    combiner = make("gradnorm", 2, layer=layer)
    step = Step(combiner, model)
    for _ in range(steps):
        step.backward(model(batch()))
    return combiner.factors


def by_hand(model: Model, parameters: list[nn.Parameter], steps: int = 3) -> Tensor:
    """Return GradNorm's weights given the gradients of these parameters only."""
    combiner = make("gradnorm", 2)
    losses = torch.stack(model(batch()))
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    for _ in range(steps):
        update(combiner, losses, J, [("0.weight", J.shape[1])])
    return combiner.factors


def test_gradnorm_measures_at_the_last_shared_layer(model: Model) -> None:
    found = factors(model)
    assert (found != 1).all()
    assert torch.equal(found, by_hand(model, list(model.trunk["last"].parameters())))
    del model.trunk["unused"]
    assert torch.equal(found, factors(model))


@pytest.mark.parametrize("layer", ["trunk.first", "trunk.first.weight", "trunk"])
def test_gradnorm_measures_at_the_configured_layer(model: Model, layer: str) -> None:
    chosen = {
        "trunk.first": list(model.trunk["first"].parameters()),
        "trunk.first.weight": [model.trunk["first"].weight],
        "trunk": [*model.trunk["last"].parameters(), *model.trunk["first"].parameters()],
    }
    torch.testing.assert_close(factors(model, layer), by_hand(model, chosen[layer]), rtol=1e-12, atol=0.0)


def test_layer_of_only_some_losses_is_not_the_last_shared_layer(model: Model) -> None:
    class Tower(Model):
        """The first two losses use one layer more than the third."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.Linear(4, 4).double()

        def forward(self, x: Tensor) -> list[Tensor]:
            features = torch.tanh(self.trunk["last"](torch.tanh(self.trunk["first"](x))))
            inner = torch.tanh(self.tower(features))
            outputs = [self.heads[0](inner), self.heads[1](inner), features.sum(1)]
            return [output.pow(2).mean() for output in outputs]

    torch.manual_seed(0)
    tower = Tower()
    found = [make("gradnorm", 3, layer=layer) for layer in (None, "trunk.last", "tower")]
    for combiner in found:
        step = Step(combiner, tower)
        for _ in range(3):
            step.backward(tower(batch()))
    assert torch.equal(found[0].factors, found[1].factors)
    assert not torch.equal(found[0].factors, found[2].factors)


@pytest.mark.parametrize("options", [{"every": 2}, {"rescale": True}, {"groups": "layer"}])
def test_wrappers_pass_the_layers_to_gradnorm(model: Model, options: dict) -> None:
    combiner = make("gradnorm", 2, **options)
    step = Step(combiner, model)
    for _ in range(3):
        assert step.backward(model(batch())).weights is not None
    assert all(p.grad is not None for p in model.trunk["first"].parameters())


def test_unknown_layer_is_rejected_before_training(model: Model) -> None:
    wrapped = make("gradnorm", 2, layer="trunk.frist", rescale=True)
    with pytest.raises(
        ValueError,
        match=r"weighting\.layer=trunk\.frist is not a layer of the model; choose trunk\.last, trunk\.first",
    ):
        Step(wrapped, model)


def test_layer_that_is_not_shared_is_rejected(model: Model) -> None:
    with pytest.raises(
        ValueError,
        match=r"weighting\.layer=trunk\.unused is not shared by two losses; choose trunk\.last, trunk\.first",
    ):
        factors(model, "trunk.unused")


def test_layer_must_be_configured_if_none_is_shared_by_all_losses() -> None:
    class Pairs(nn.Module):
        """Three losses, of which each pair shares a layer."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(3, 1).double() for _ in range(3))

        def forward(self, x: Tensor) -> list[Tensor]:
            a, b, c = self.a(x), self.b(x), self.c(x)
            return [(a + b).pow(2).mean(), (b + c).pow(2).mean(), (a + c).pow(2).mean()]

    pairs = Pairs()
    with pytest.raises(
        ValueError, match=r"no layer is reached by all losses; set weighting\.layer to one of a, b, c"
    ):
        Step(make("gradnorm", 3), pairs).backward(pairs(batch()))
    assert Step(make("gradnorm", 3, layer="b"), pairs).backward(pairs(batch())).weights is not None


def test_tied_parameters_in_heads_are_groups_too(model: Model) -> None:
    model.heads[1].weight = model.heads[0].weight
    combiner = make("upgrad", 2, groups="layer")
    Step(combiner, model).backward(model(batch()))
    assert list(combiner.members) == ["/trunk/last", "/trunk/first", "/heads/0"]


@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_groups_load_a_checkpoint_from_before_0_2(by: str) -> None:
    """Groups named relative to the trunk load their state into the groups of the full names."""
    layout = (("trunk.0.weight", 6), ("trunk.0.bias", 2), ("trunk.weight", 4))
    training = ToyTraining(make("gradvac", 4, groups=by), Toy(4))
    losses, J = losses_of(4), conflicting(4)
    for step in range(3):
        torch.manual_seed(step)
        update(training.combiner, losses, J, layout)
    state = {_before(key): value for key, value in training.combiner.state_dict().items()}
    assert state.keys() != training.combiner.state_dict().keys()
    resumed = make("gradvac", 4, groups=by)
    resumed.load_state_dict(copy.deepcopy(state), strict=True)
    torch.manual_seed(9)
    found = update(resumed, losses, J + 0.1, layout).vector
    torch.manual_seed(9)
    assert torch.equal(found, update(training.combiner, losses, J + 0.1, layout).vector)
    assert isinstance(resumed, Grouped)
    assert set(resumed.members) == set(training.combiner.members)  # type: ignore[arg-type]
    assert J.shape[1] == N


def _before(key: str) -> str:
    """Return a key as before 0.2, with names relative to the trunk."""
    head, sep, tail = key.partition("members./trunk")
    return head + "members." + (tail if tail.startswith("/") else "/" + tail) if sep else key
