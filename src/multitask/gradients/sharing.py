"""Which tasks use which parameters, found from the graph of a forward pass."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import Node


def reached(output: Tensor) -> set[int]:
    """Return the ``id`` of every leaf that a backward pass from ``output`` would give a gradient."""
    if output.grad_fn is None:
        return {id(output)} if output.requires_grad else set()
    found: set[int] = set()
    seen: set[Node] = {output.grad_fn}
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def users(outputs: Mapping[str, Tensor], parameters: Iterable[nn.Parameter]) -> list[tuple[str, ...]]:
    """Return for each parameter the tasks that use it.

    Outputs that come from one operation, such as the parts of a split or all of a compiled network,
    cannot be told apart: what any of them reaches counts as reached by each.

    Args:
        outputs: Each task's features or loss, with its graph, from a forward pass that is not compiled.
        parameters: The parameters in question.

    Returns:
        The names of the tasks, in the order of ``outputs``; empty where no task reaches the
        parameter, as when it is frozen or lies behind a re-entrant checkpoint.
    """
    by_node: dict[object, set[int]] = {}
    for output in outputs.values():
        by_node.setdefault(output.grad_fn or id(output), reached(output))
    by_task = {name: by_node[output.grad_fn or id(output)] for name, output in outputs.items()}
    return [tuple(name for name, leaves in by_task.items() if id(p) in leaves) for p in parameters]


class Part(NamedTuple):
    """A part of a model that serves the same tasks throughout."""

    name: str
    """Dotted, as in ``named_parameters``."""
    users: tuple[str, ...]
    """The tasks that use it; empty where none does."""
    parameters: int
    """How many numbers it has."""


def parts(
    named: Mapping[str, nn.Parameter], used_by: Sequence[tuple[str, ...]], depth: int = 1
) -> list[Part]:
    """Return the largest modules whose parameters all serve the same tasks, in the order of the names.

    Args:
        named: Parameters by dotted name.
        used_by: For each the tasks that use it, as :func:`users` gives them.
        depth: How many components the shortest name has.
    """
    rows = [
        (name.split("."), p.numel(), tasks) for (name, p), tasks in zip(named.items(), used_by, strict=True)
    ]
    return _parts(rows, depth)


def _parts(rows: list[tuple[list[str], int, tuple[str, ...]]], depth: int) -> list[Part]:
    found = []
    for path, group in groupby(rows, key=lambda row: row[0][:depth]):
        below = list(group)
        if len({tasks for _, _, tasks in below}) == 1:
            found.append(Part(".".join(path), below[0][2], sum(count for _, count, _ in below)))
        else:
            found += _parts(below, depth + 1)
    return found
