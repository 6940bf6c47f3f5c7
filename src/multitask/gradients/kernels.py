"""Products with the kernel ``A Aᵀ`` of all positions, a symmetric matrix; of a large one, half is computed."""

from itertools import pairwise

from torch import Tensor

from multitask.gradients.rows import inner_products

# The fewest positions of a block, and the most blocks: larger matrix products are faster.
_POSITIONS, _BLOCKS = 128, 8


def through_kernel(D: Tensor, inputs: Tensor, bias: float) -> Tensor:
    """Return ``⟨D_i, (A Aᵀ + bias · 1 1ᵀ) D_j⟩``, ``[k, k]``; D is ``[k, positions, q]``, A ``[positions, p]``."""
    if len(inputs) <= _POSITIONS:
        kernel = inputs @ inputs.T + bias
        return inner_products(D.flatten(1), (kernel @ D).flatten(1))
    half = D.new_zeros(len(D), len(D))
    for start, stop in pairwise(_bounds(len(inputs))):
        kernel = inputs[start:stop] @ inputs[:stop].T
        if bias:
            kernel += bias
        kernel[:, start:] *= 0.5
        half += inner_products(D[:, start:stop].flatten(1), (kernel @ D[:, :stop]).flatten(1))
    return half + half.T


def entries(positions: int) -> int:
    """Return the number of entries of the kernel that are computed."""
    return sum((stop - start) * stop for start, stop in pairwise(_bounds(positions)))


def _bounds(positions: int) -> list[int]:
    size = max(_POSITIONS, -(-positions // _BLOCKS))
    return [*range(0, positions, size), positions]
