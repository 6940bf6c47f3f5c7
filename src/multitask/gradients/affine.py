"""Parameters that shift or scale an operation's output, whose gradients are sums over positions."""

from collections.abc import Callable
from itertools import dropwhile

import torch
from torch import Tensor

from multitask.gradients.graph import Node
from multitask.gradients.operands import saved
from multitask.gradients.uses import Use


def is_bias(use: Use, shape: torch.Size) -> bool:
    """Return whether an operation adds a parameter to its result, or expands it."""
    match use.operation, use.place, use.transposed:
        case "AddmmBackward0", 0, False:
            return use.node._saved_beta == 1 and shape == use.node._saved_mat2_sym_sizes[1:]
        case "AddBackward0", place, False:
            return place == 0 or use.node._saved_alpha == 1
        case "ConvolutionBackward0" | "NativeLayerNormBackward0" | "NativeGroupNormBackward0", 2, False:
            return True
        case "ExpandBackward0", _, False:
            return True
    return False


def affine_terms(use: Use, shape: torch.Size) -> Callable[[Tensor], Tensor] | None:
    """Return a function from output gradients to terms of the same shape, which add up to a bias's or scale's gradient.

    ``None`` for other parameters.
    """
    if is_bias(use, shape):
        return lambda gradient: gradient
    match use.operation, use.place, use.transposed:
        case "NativeLayerNormBackward0" | "NativeGroupNormBackward0", 1, False:
            factor = _normalized(use.node)
        case "MulBackward0", place, False:
            factor = saved(use.node, "self" if place else "other")
        case _:
            return None
    return None if factor is None else lambda gradient: gradient * factor.to(gradient.dtype)


def _normalized(node: Node) -> Tensor | None:
    """Return the normalized inputs of layer or group normalization."""
    inputs, mean, rstd = (saved(node, name) for name in ("input", "result1", "result2"))
    if inputs is None or mean is None or rstd is None or not inputs.numel():
        return None
    values = inputs.to(mean.dtype).reshape(mean.numel(), -1)
    return ((values - mean.view(-1, 1)) * rstd.view(-1, 1)).reshape(inputs.shape)


def shape_at_position(use: Use, shape: torch.Size) -> tuple[int, ...]:
    """Return a parameter's shape at one position of its operation's output: 1 where it is broadcast there."""
    match use.operation:
        case "EmbeddingBackward0":
            return shape[1:]
        case "NativeLayerNormBackward0" | "AddBackward0" | "MulBackward0" | "ExpandBackward0":
            return tuple(dropwhile(lambda size: size == 1, shape))
    # A position is an image, or a row of a matrix.
    return shape[0], *[1] * (len(use.node._input_metadata[0].shape) - 2)
