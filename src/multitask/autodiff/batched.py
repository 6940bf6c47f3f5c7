"""All rows in one backward pass, where every operation treats a batch of gradients as it treats one.

One product of matrices with k times as many rows takes less time than k products, and on small networks, where
most time goes into starting operations, one pass takes that of one row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from multitask.autodiff.gradients import Cotangents
from multitask.autodiff.sweep import Piles, Tap
from multitask.autodiff.uses import Node

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


def stacked(outputs: Sequence[Tensor], cotangents: Cotangents) -> list[Tensor | None] | None:
    """Return the gradients of all rows at each output, ``[k, *output.shape]``, ``None`` where none uses it.

    ``None`` as a whole where rows cannot be differentiated together: an operation behind the outputs is
    of another kind, or some rows use an output and others do not.
    """
    if (
        len(cotangents) < _FEWEST
        or not any(o.requires_grad for o in outputs)
        or not all(map(_is_batched, outputs))
    ):
        return None
    found: list[Tensor | None] = []
    for at_output in zip(*cotangents.rows(), strict=True):
        there = [gradient for gradient in at_output if gradient is not None]
        if there and len(there) < len(at_output):
            return None
        found.append(torch.stack(there) if there else None)
    return found if any(gradient is not None for gradient in found) else None


def _is_batched(output: Tensor) -> bool:
    seen: set[Node] = set()
    waiting: list[Node] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() not in _BATCHED:
            return False
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return True


def pull(
    tap: Tap, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], dtype: torch.dtype
) -> Piles | None:
    """Let all rows flow back at once; ``None`` where a hook of the user's does not take a batch of gradients.

    Args:
        tap: Where to listen.
        outputs: Where the rows come from.
        gradients: Their gradients there, as :func:`stacked` gives them.
        dtype: The type of the results.
    """
    roots = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
    reached: list[bool] = []

    def pull_one(*row: Tensor) -> list[Tensor]:
        found = tap.pull([(output, g) for (output, _), g in zip(roots, row, strict=True)], retain_graph=True)
        reached[:] = [gradient is not None for gradient in found]
        return [gradient for gradient in found if gradient is not None]

    try:
        there = iter(torch.vmap(pull_one)(*[gradient for _, gradient in roots]))
    except RuntimeError:  # one that is no matter of batches comes again from the rows
        return None
    found = [next(there).to(dtype) if is_there else None for is_there in reached]
    k = len(roots[0][1])
    stored = [
        leaf.new_zeros(k, leaf.numel(), dtype=dtype) if gradient is None else gradient.flatten(1)
        for leaf, gradient in zip(tap.leaves, found[tap.nodes :], strict=True)
    ]
    return Piles(found[: tap.nodes], torch.cat(stored, 1) if stored else None)
