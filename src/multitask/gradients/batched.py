"""All rows in one vectorized backward pass, if that is faster for every operation in the shared graph.

One matrix product with k times as many rows is faster than k products, and in small networks, where starting
operations takes most of the time, the pass takes no longer than that of one row.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.graph import Node
from multitask.gradients.losses import Pulls, gradients_at
from multitask.gradients.taps import Gatherer, Tap

# For fewer rows, vmap costs as much as it saves; on a CPU, starting an operation takes less time.
_FEWEST, _FEWEST_ON_CPU = 3, 6
# Operations for which a batch of gradients is one larger gradient. Convolutions and batch normalization are slower so.
_MATRIX = ("Add", "Addmm", "Mm", "Mul", "ReshapeAlias", "T", "View")
_ACTIVATIONS = ("Elu", "Gelu", "LeakyRelu", "Relu", "Sigmoid", "Silu", "Softplus", "Tanh")
_BATCHED = {"torch::autograd::AccumulateGrad", *(f"{name}Backward0" for name in _MATRIX + _ACTIVATIONS)}


def stacked(
    pulls: Pulls, parameters: Sequence[Tensor], gather: Gatherer
) -> tuple[list[GradientEdge], list[Tensor]] | None:
    """Return the edges into the shared graph, and all rows' gradients there, ``[k, *shape]``, from one backward pass.

    Hooks at the nodes before these edges, each reached by a single loss, separate the losses' gradients.

    ``None`` if the graph has other operations, not all losses pass each edge, or a single loss reaches a shared
    parameter.
    """
    tasks, own = pulls.tasks, [p for task in pulls.tasks for p in pulls.parameters[task]]
    fewest = _FEWEST_ON_CPU if pulls.losses.values.device.type == "cpu" else _FEWEST
    # With shared= given, own parameters may belong to several losses.
    if len(pulls.rows) < fewest or pulls.losses.parts > 1 or len(set(own)) < len(own):
        return None
    frontier = pulls.graph.frontier()
    if (
        not frontier
        or pulls.graph.reached_alone(parameters)
        or any(not {loss for _, loss in entering}.issuperset(tasks) for entering in frontier.values())
        or any(node.name() not in _BATCHED for node in pulls.graph.shared_nodes())
    ):
        return None
    rows: dict[tuple[Node, int], Tensor] = {}
    arrived = set()

    def hear(
        task: int, into: Sequence[tuple[Node, int]], gradients: Sequence[Tensor | None], *_: object
    ) -> None:
        for key, gradient in zip(into, gradients, strict=True):
            if gradient is None or key not in frontier:
                continue
            if key not in rows:
                # Kept between steps: allocating memory takes longer than filling it.
                name, shape = ("frontier", len(rows)), (len(tasks), *gradient.shape)
                rows[key] = gather.buffer(name, shape, gradient)
            row = rows[key][tasks.index(task)]
            row.copy_(row + gradient if (key, task) in arrived else gradient)
            arrived.add((key, task))

    roots: list[GradientEdge] = []
    seeds: list[Tensor] = []
    for task in tasks:
        of_task, of_seeds = pulls.losses.root(task)
        hear(task, [(edge.node, edge.output_nr) for edge in of_task], of_seeds)
        roots += of_task
        seeds += of_seeds
    entering = {node: loss for of_edge in frontier.values() for node, loss in of_edge if node is not None}
    handles = [
        node.register_hook(partial(hear, loss, pulls.graph.following[node]))
        for node, loss in entering.items()
    ]
    edges = [GradientEdge(*key) for key in frontier]
    try:
        found = gradients_at(roots, seeds, [*edges, *own], retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    of_own = dict(zip(own, found[len(edges) :], strict=True))
    for task in tasks:
        pulls.own[task] = [of_own[p] for p in pulls.parameters[task]]
    if len(arrived) < len(frontier) * len(tasks) or any(of_edge.is_complex() for of_edge in rows.values()):
        return None
    return edges, [rows[key] for key in frontier]


def is_hooked(edge: GradientEdge) -> bool:
    """Return whether a hook changes the gradient at an edge; a pass that starts there would apply it twice."""
    metadata = edge.node._input_metadata[edge.output_nr]
    zeros = torch.zeros((), dtype=metadata.dtype, device=metadata.device).expand(metadata.shape)
    (seen,) = torch.autograd.grad([edge], [edge], [zeros], retain_graph=True)
    return seen.data_ptr() != zeros.data_ptr()


def pull(
    tap: Tap, edges: Sequence[GradientEdge], gradients: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor | None] | None:
    """Return all rows' gradients at a tap, ``[k, *shape]`` in ``dtype``, given those at edges; see :func:`stacked`.

    ``None`` if a user's hook does not support vmap.
    """
    reached: list[bool] = []

    def pull_one(*row: Tensor) -> list[Tensor]:
        found = tap.listen(partial(gradients_at, edges, row, retain_graph=True))
        reached[:] = [gradient is not None for gradient in found]
        return [gradient for gradient in found if gradient is not None]

    try:
        there = iter(torch.vmap(pull_one)(*gradients))
    except RuntimeError:  # any other error is raised again by the passes of single rows
        return None
    return [next(there).to(dtype) if is_there else None for is_there in reached]
