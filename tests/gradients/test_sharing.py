"""Which task uses which parameter, read from the graph."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from multitask.gradients.sharing import reached, users


def test_a_parameter_is_shared_where_both_outputs_depend_on_it():
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
    assert reached(output) == {id(used)}
    assert reached(frozen * 2) == set()


def test_tied_parameters_are_one():
    layer = nn.Linear(3, 3)
    assert users({"a": layer(layer(torch.randn(2, 3)))}, layer.parameters()) == [("a",), ("a",)]


def test_checkpointing_that_keeps_the_graph_is_seen_through():
    layer = nn.Linear(3, 3)
    output = checkpoint(layer, torch.randn(2, 3), use_reentrant=False)
    assert users({"a": output}, layer.parameters()) == [("a",), ("a",)]


def test_a_deep_graph_needs_no_recursion():
    parameter = nn.Parameter(torch.randn(1))
    output = parameter
    for _ in range(5000):
        output = output + 1
    assert reached(output) == {id(parameter)}
