"""All rows in one backward pass, where every operation treats a batch of gradients as it treats one.

One product of matrices with k times as many rows takes less time than k products, and on small networks, where
most time goes into starting operations, one pass takes that of one row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.losses import Inputs, Pulls
from multitask.gradients.rows import numbers, real_shape
from multitask.gradients.taps import Gathered, Tap

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


def stacked(pulls: Pulls, parameters: Sequence[Tensor]) -> tuple[list[GradientEdge], list[Tensor]] | None:
    """Return the edges at which the losses enter what they share, and their gradients there, ``[k, *shape]``.

    ``None`` where rows cannot be differentiated together: an operation behind these edges is of another
    kind, some losses do not pass an edge, one alone reaches a shared parameter, or a hook changes what arrives.
    """
    if len(pulls.rows) < _FEWEST or pulls.losses.parts > 1 or pulls.graph.reached_alone(parameters):
        return None
    every = sum(1 << task for task in pulls.tasks)
    frontier = pulls.graph.frontier()
    if not frontier or any(losses & every != every for losses in frontier.values()):
        return None
    if not all(node.name() in _BATCHED for node in pulls.graph.shared_nodes()):
        return None
    edges = [GradientEdge(node, output) for node, output in frontier]
    rows = [pulls.pass_of(row, last=False)(edges) for row in pulls.rows]
    found: list[Tensor] = []
    for edge, arrived in zip(edges, zip(*rows, strict=True), strict=True):
        gradients = [gradient for gradient in arrived if gradient is not None]
        if len(gradients) < len(arrived) or gradients[0].is_complex() or is_hooked(edge, gradients[0]):
            return None
        found.append(torch.stack(gradients))
    return edges, found


def is_hooked(edge: GradientEdge, gradient: Tensor) -> bool:
    """Return whether a hook changes what arrives at an edge: it would change it again on the way on from there."""
    (seen,) = torch.autograd.grad([edge], [edge], [gradient], retain_graph=True)
    return seen.data_ptr() != gradient.data_ptr()


def pull(
    tap: Tap, edges: Sequence[GradientEdge], gradients: Sequence[Tensor], dtype: torch.dtype
) -> Gathered | None:
    """Let all rows flow back at once; ``None`` where a user's hook does not take a batch of gradients.

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
    found = [next(there).to(dtype) if is_there else None for is_there in reached]
    stored = gradients[0].new_zeros(len(gradients[0]), numbers(tap.leaves), dtype=dtype)
    for view, gradient in zip(
        stored.split([real_shape(p).numel() for p in tap.leaves], 1), found[tap.nodes :], strict=True
    ):
        if gradient is not None:
            view.copy_(gradient.flatten(1))
    return Gathered(found[: tap.nodes], stored)
