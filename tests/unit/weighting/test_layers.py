"""Which layer GradNorm measures at, and groups of parameters by their full names."""

import copy

import pytest
import torch
from torch import Tensor, nn

from multitask import Step
from multitask.weighting.grouped import Grouped
from tests.unit.weighting.members import Course, N, Toy, conflicting, losses_of, make, update


class Model(nn.Module):
    """Registers a classifier that nothing uses last in its trunk, and the layers in another order than they run."""

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
    """Return what GradNorm makes of the gradients of these parameters alone."""
    combiner = make("gradnorm", 2)
    losses = torch.stack(model(batch()))
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    for _ in range(steps):
        update(combiner, losses, J, [("0.weight", J.shape[1])])
    return combiner.factors


def test_gradnorm_measures_where_all_losses_part_whatever_is_registered_last(model: Model) -> None:
    found = factors(model)
    assert (found != 1).all()
    assert torch.equal(found, by_hand(model, list(model.trunk["last"].parameters())))
    del model.trunk["unused"]
    assert torch.equal(found, factors(model))


@pytest.mark.parametrize("layer", ["trunk.first", "trunk.first.weight", "trunk"])
def test_gradnorm_measures_where_it_is_told_to(model: Model, layer: str) -> None:
    chosen = {
        "trunk.first": list(model.trunk["first"].parameters()),
        "trunk.first.weight": [model.trunk["first"].weight],
        "trunk": [*model.trunk["last"].parameters(), *model.trunk["first"].parameters()],
    }
    torch.testing.assert_close(factors(model, layer), by_hand(model, chosen[layer]), rtol=1e-12, atol=0.0)


def test_a_layer_that_only_some_losses_reach_is_not_the_last(model: Model) -> None:
    class Tower(Model):
        """The first two losses go through a layer more than the third."""

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


@pytest.mark.parametrize("every", [{"every": 2}, {"rescale": True}, {"groups": "layer"}])
def test_wrappers_show_gradnorm_the_layers(model: Model, every: dict) -> None:
    combiner = make("gradnorm", 2, **every)
    step = Step(combiner, model)
    for _ in range(3):
        assert step.backward(model(batch())).weights is not None
    assert all(p.grad is not None for p in model.trunk["first"].parameters())


def test_a_layer_that_the_model_does_not_have_is_refused_before_training(model: Model) -> None:
    wrapped = make("gradnorm", 2, layer="trunk.frist", rescale=True)
    with pytest.raises(
        ValueError,
        match=r"weighting\.layer=trunk\.frist is not a layer of the model; choose trunk\.last, trunk\.first",
    ):
        Step(wrapped, model)


def test_a_layer_that_is_not_shared_is_refused(model: Model) -> None:
    with pytest.raises(
        ValueError,
        match=r"weighting\.layer=trunk\.unused is not shared by two losses; choose trunk\.last, trunk\.first",
    ):
        factors(model, "trunk.unused")


def test_without_a_layer_that_all_losses_reach_one_must_be_named() -> None:
    class Pairs(nn.Module):
        """Three losses, each two of which share a layer."""

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
def test_groups_of_a_checkpoint_with_names_within_the_trunk(by: str) -> None:
    """As they were before 0.2: its memory moves to the groups of the full names."""
    layout = (("trunk.0.weight", 6), ("trunk.0.bias", 2), ("trunk.weight", 4))
    course = Course(make("gradvac", 4, groups=by), Toy(4))
    losses, J = losses_of(4), conflicting(4)
    for step in range(3):
        torch.manual_seed(step)
        update(course.combiner, losses, J, layout)
    state = {_before(key): value for key, value in course.combiner.state_dict().items()}
    assert state.keys() != course.combiner.state_dict().keys()
    resumed = make("gradvac", 4, groups=by)
    resumed.load_state_dict(copy.deepcopy(state), strict=True)
    torch.manual_seed(9)
    found = update(resumed, losses, J + 0.1, layout).vector
    torch.manual_seed(9)
    assert torch.equal(found, update(course.combiner, losses, J + 0.1, layout).vector)
    assert isinstance(resumed, Grouped)
    assert set(resumed.members) == set(course.combiner.members)  # type: ignore[arg-type]
    assert J.shape[1] == N


def _before(key: str) -> str:
    """Return a key as it was when groups had names within the trunk."""
    head, sep, tail = key.partition("members./trunk")
    return head + "members." + (tail if tail.startswith("/") else "/" + tail) if sep else key
