"""Groups a model's parameters into parts that serve the same tasks."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from multitask.gradients.graph import Graph


class Part(NamedTuple):
    """A part of a model that serves the same tasks throughout."""

    name: str
    """Dotted, as in ``named_parameters``."""
    users: tuple[str, ...]
    """The tasks that use it; empty if none does."""
    parameters: int
    """The number of scalar parameters."""


def users(losses: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> list[tuple[str, ...]]:
    """Return the losses that reach each parameter, by name and in the order of ``losses``.

    Outputs of one operation, such as the parts of a split or all outputs of a compiled network, are not
    distinguished: a parameter that one of them reaches counts as reached by each.
    """
    edges = [[get_gradient_edge(loss)] if loss.requires_grad else [] for loss in losses.values()]
    reaching = {id(leaf): bits for leaf, bits in Graph(edges).leaves}
    names = list(losses)
    return [
        tuple(name for i, name in enumerate(names) if reaching.get(id(p), 0) >> i & 1) for p in parameters
    ]


def parts(
    named: Mapping[str, nn.Parameter], used_by: Sequence[tuple[str, ...]], depth: int = 1
) -> list[Part]:
    """Return the largest modules whose trained parameters all serve the same tasks, in the order of the names.

    Frozen parameters that no loss reaches join their module: an encoder with low-rank updates is one part.

    Args:
        named: Parameters by dotted name.
        used_by: The tasks that use each parameter, as returned by :func:`users`.
        depth: The number of components of the shortest name.
    """
    rows = [
        (name.split("."), p.numel(), tasks if tasks or p.requires_grad else None)
        for (name, p), tasks in zip(named.items(), used_by, strict=True)
    ]
    return _parts(rows, depth)


def _parts(rows: list[tuple[list[str], int, tuple[str, ...] | None]], depth: int) -> list[Part]:
    found = []
    for path, group in groupby(rows, key=lambda row: row[0][:depth]):
        below = list(group)
        served = {tasks for _, _, tasks in below if tasks is not None}
        if len(served) <= 1:
            found.append(Part(".".join(path), next(iter(served), ()), sum(count for _, count, _ in below)))
        else:
            found += _parts(below, depth + 1)
    return found
