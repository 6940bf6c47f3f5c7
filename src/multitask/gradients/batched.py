"""All rows in one backward pass, where every operation treats a batch of gradients as it treats one.

One product of matrices with k times as many rows takes less time than k products, and on small networks, where
most time goes into starting operations, one pass takes that of one row.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.graph import Node
from multitask.gradients.losses import Inputs, Pulls, gradients_at
from multitask.gradients.taps import Gatherer, Tap

# For fewer rows, telling autograd of the batch takes as long as what it saves.
_FEWEST = 3
# Operations of which a batched gradient is a plain larger gradient. Convolutions and batch normalization are
# none: they take longer that way.
_BATCHED = {
    "AddBackward0",
    "AddmmBackward0",
    "EluBackward0",
    "GeluBackward0",
    "LeakyReluBackward0",
    "MmBackward0",
    "MulBackward0",
    "ReluBackward0",
    "ReshapeAliasBackward0",
    "SiluBackward0",
    "SoftplusBackward0",
    "TBackward0",
    "TanhBackward0",
    "SigmoidBackward0",
    "ViewBackward0",
    "torch::autograd::AccumulateGrad",
}


def stacked(
    pulls: Pulls, parameters: Sequence[Tensor], gather: Gatherer
) -> tuple[list[GradientEdge], list[Tensor]] | None:
    """Return the edges at which the losses enter what they share, and their gradients there, ``[k, *shape]``.

    ``None`` where rows cannot be differentiated together: an operation behind these edges is of another
    kind, some losses do not pass an edge, or one alone reaches a shared parameter.
    """
    if len(pulls.rows) < _FEWEST or pulls.losses.parts > 1 or pulls.graph.reached_alone(parameters):
        return None
    own = [p for of_task in pulls.parameters for p in of_task]
    if len(set(own)) < len(own):  # where what is shared was given by name
        return None
    frontier = pulls.graph.frontier()
    tasks = set(pulls.tasks)
    if not frontier or any(not tasks <= {loss for _, loss in entering} for entering in frontier.values()):
        return None
    if not all(node.name() in _BATCHED for node in pulls.graph.shared_nodes()):
        return None
    entering = {node: loss for of_edge in frontier.values() for node, loss in of_edge if node is not None}
    arrived = _arrivals(pulls, list(frontier), entering, gather)
    found = [arrived[key] for key in frontier if key in arrived]
    if len(found) < len(frontier) or any(gradients.is_complex() for gradients in found):
        return None
    return [GradientEdge(*key) for key in frontier], found


def _arrivals(
    pulls: Pulls, frontier: Sequence[tuple[Node, int]], entering: Mapping[Node, int], gather: Gatherer
) -> dict[tuple[Node, int], Tensor]:
    """Return all losses' gradients at the edges of the frontier where every loss arrives, ``[k, *shape]``.

    One backward pass for all losses: the nodes from which one loss alone enters are asked what they hand on.
    """
    rows: dict[tuple[Node, int], Tensor] = {}
    arrived: dict[tuple[Node, int], set[int]] = {key: set() for key in frontier}

    def hear(
        task: int, into: Sequence[tuple[Node, int]], gradients: Sequence[Tensor | None], *_: object
    ) -> None:
        for key, gradient in zip(into, gradients, strict=True):
            if gradient is None or key not in arrived:
                continue
            if key not in rows:
                shape = (len(pulls.tasks), *gradient.shape)
                # Kept between steps: fresh memory takes longer to get than to fill.
                rows[key] = gather.buffer(("frontier", len(rows)), shape, gradient)
            row = rows[key][pulls.tasks.index(task)]
            row.copy_(row + gradient if task in arrived[key] else gradient)
            arrived[key].add(task)

    roots = [pulls.losses.root(0, task) for task in pulls.tasks]
    for task, (edges, seeds) in zip(pulls.tasks, roots, strict=True):
        hear(task, [(edge.node, edge.output_nr) for edge in edges], seeds)
    handles = [
        node.register_hook(partial(hear, loss, pulls.graph.following[node]))
        for node, loss in entering.items()
    ]
    own = [pulls.parameters[task] for task in pulls.tasks]
    inputs = [GradientEdge(*key) for key in frontier] + [p for of_task in own for p in of_task]
    try:
        found = gradients_at(
            [edge for edges, _ in roots for edge in edges],
            [seed for _, seeds in roots for seed in seeds],
            inputs,
            retain_graph=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    of_own = iter(found[len(frontier) :])
    for task, of_task in zip(pulls.tasks, own, strict=True):
        pulls.own[task] = [next(of_own) for _ in of_task]
    return {key: gradients for key, gradients in rows.items() if len(arrived[key]) == len(pulls.tasks)}


def is_hooked(edge: GradientEdge, gradient: Tensor) -> bool:
    """Return whether a hook changes what arrives at an edge: it would change it again on the way on from there."""
    (seen,) = torch.autograd.grad([edge], [edge], [gradient], retain_graph=True)
    return seen.data_ptr() != gradient.data_ptr()


def pull(
    tap: Tap, edges: Sequence[GradientEdge], gradients: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor | None] | None:
    """Return all rows' gradients at a tap, ``[k, *shape]``; ``None`` where a user's hook does not take a batch of them.

    Args:
        tap: Where to listen.
        edges: Where the rows come from.
        gradients: Their gradients there, as :func:`stacked` gives them.
        dtype: The dtype of the results.
    """
    reached: list[bool] = []

    def pull_one(*row: Tensor) -> list[Tensor]:
        def pull(inputs: Inputs) -> Sequence[Tensor | None]:
            return torch.autograd.grad(edges, inputs, row, retain_graph=True, allow_unused=True)  # type: ignore[arg-type]

        found = tap.listen(pull)
        reached[:] = [gradient is not None for gradient in found]
        return [gradient for gradient in found if gradient is not None]

    try:
        there = iter(torch.vmap(pull_one)(*gradients))
    except RuntimeError:  # an error that has nothing to do with batches is raised again by the rows
        return None
    return [next(there).to(dtype) if is_there else None for is_there in reached]
