"""The parameters of each loss, read from the autograd graph."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from multitask.gradients.graph import Graph
from multitask.gradients.losses import Losses
from multitask.run.sharing import users


def test_a_parameter_of_both_outputs_is_shared():
    common, first, second, unused = (nn.Parameter(torch.randn(3)) for _ in range(4))
    hidden = common * 2
    outputs = {"a": (hidden * first).sum(), "b": (hidden + second).tanh()}
    assert users(outputs, [common, first, second, unused]) == [("a", "b"), ("a",), ("b",), ()]


def test_one_output_for_two_tasks_is_shared():
    parameter = nn.Parameter(torch.randn(3))
    output = parameter.exp()
    assert users({"a": output, "b": output}, [parameter]) == [("a", "b")]


def test_an_output_can_be_the_parameter_itself():
    parameter, other = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
    assert users({"a": parameter, "b": other}, [parameter, other]) == [("a",), ("b",)]


def test_detached_and_frozen_parameters_are_not_reached():
    frozen = nn.Parameter(torch.randn(3), requires_grad=False)
    cut, used = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
    output = frozen * cut.detach() * used
    assert users({"a": output, "b": frozen * 2}, [frozen, cut, used]) == [(), (), ("a",)]


def test_tied_parameters_are_one():
    layer = nn.Linear(3, 3)
    assert users({"a": layer(layer(torch.randn(2, 3)))}, list(layer.parameters())) == [("a",), ("a",)]


def test_parameters_behind_checkpointing_are_found():
    layer = nn.Linear(3, 3)
    output = checkpoint(layer, torch.randn(2, 3), use_reentrant=False)
    assert users({"a": output}, list(layer.parameters())) == [("a",), ("a",)]


def test_reentrant_checkpointing_is_rejected():
    layer, inputs = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        users({"a": checkpoint(layer, inputs, use_reentrant=True)}, list(layer.parameters()))


def test_a_deep_graph_needs_no_recursion():
    parameter = nn.Parameter(torch.randn(1))
    output = parameter
    for _ in range(5000):
        output = output + 1
    assert users({"a": output}, [parameter]) == [("a",)]


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_stacked_losses_are_split(dim: int):
    a, b = (nn.Parameter(torch.randn(4)) for _ in range(2))
    pieces = [a * 2, b * 3] if dim else [(a * 2).sum(), (b * 3).sum()]
    found = Losses(torch.stack(pieces, dim) if dim else torch.stack(pieces))
    reaching = dict(Graph(found.edges()).leaves)
    assert reaching == {a: 1, b: 2}


@pytest.mark.parametrize("dim", [0, -2])
def test_stacked_halves_of_stacked_losses_are_split(dim: int):
    a, b = (nn.Parameter(torch.randn(4)) for _ in range(2))
    halves = torch.stack([torch.stack([(a * k).sum(), (b * k).sum()]) for k in (1, 2)], dim)
    assert dict(Graph(Losses(halves).edges()).leaves) == {a: 1, b: 2}


def test_losses_of_one_operation_share_its_inputs():
    a = nn.Parameter(torch.randn(3))
    assert dict(Graph(Losses(a.exp()).edges()).leaves) == {a: 7}


def test_the_layer_nearest_to_the_losses_has_the_smallest_distance():
    stem, middle, last = (nn.Linear(3, 3) for _ in range(3))
    hidden = torch.tanh(stem(torch.randn(2, 3)))
    hidden = hidden + torch.tanh(middle(hidden))  # with a skip connection
    out = last(hidden)
    parameters = [last.weight, middle.weight, stem.weight]
    far = Graph(Losses([out.sum(), out.square().sum()]).edges()).distances(parameters)
    assert None not in far
    assert far == sorted(set(far), key=float)


def test_a_reused_layer_has_the_distance_of_its_last_use():
    tied, between = nn.Linear(3, 3), nn.Linear(3, 3)
    out = tied(torch.tanh(between(torch.tanh(tied(torch.randn(2, 3))))))
    near, far = Graph(Losses([out.sum(), out.square().sum()]).edges()).distances(
        [tied.weight, between.weight]
    )
    assert near < far


def test_a_layer_of_one_loss_has_no_distance():
    shared, own = nn.Linear(3, 3), nn.Linear(3, 3)
    hidden = shared(torch.randn(2, 3))
    graph = Graph(Losses([hidden.sum(), own(hidden).sum()]).edges())
    assert graph.distances([own.weight]) == [None]
