"""Parameters that shift or scale an operation's output, whose gradients are sums over positions."""

from collections.abc import Callable

import torch
from torch import Tensor

from multitask.gradients.graph import Node
from multitask.gradients.operands import saved
from multitask.gradients.uses import Use

_BY_CHANNEL = ("ConvolutionBackward0", "NativeGroupNormBackward0")


def is_bias(use: Use, shape: torch.Size) -> bool:
    """Return whether a parameter is the bias of a linear layer or a convolution."""
    match use.operation, use.place, use.transposed:
        case "AddmmBackward0", 0, False:
            return use.node._saved_beta == 1 and shape == use.node._saved_mat2_sym_sizes[1:]
        case "ConvolutionBackward0", 2, False:
            return True
    return False


def affine_columns(use: Use, shape: torch.Size) -> Callable[[Tensor], Tensor] | None:
    """Return a function from output gradients, ``[k, *output]``, to the parameter's, ``[k, positions, numel]``.

    The parameter is the bias of a linear layer or convolution, the scale or shift of layer or group normalization, or
    is added, multiplied or expanded; ``None`` for other parameters.
    """

    def sums(gradient: Tensor) -> Tensor:
        if use.operation in _BY_CHANNEL:  # a position is an image
            return gradient.flatten(2).unflatten(2, (shape[0], -1)).sum(3)
        own = _own(shape)
        positions = gradient.flatten(1, -1 - len(own)) if own else gradient.flatten(1)[..., None]
        broadcast = [2 + d for d, size in enumerate(own) if size == 1]
        return (positions.sum(broadcast) if broadcast else positions).flatten(2)

    if is_bias(use, shape):
        return sums
    if use.transposed:
        return None
    match use.operation, use.place:
        case ("NativeLayerNormBackward0" | "NativeGroupNormBackward0", 2) | ("ExpandBackward0", _):
            return sums
        case "AddBackward0", place if place == 0 or use.node._saved_alpha == 1:
            return sums
        case "NativeLayerNormBackward0" | "NativeGroupNormBackward0", 1:
            factor = _normalized(use.node)
        case "MulBackward0", place:
            factor = saved(use.node, "other" if place == 0 else "self")
        case _:
            return None
    return None if factor is None else lambda gradient: sums(gradient * factor.to(gradient.dtype))


def _normalized(node: Node) -> Tensor | None:
    """Return the normalized inputs of layer or group normalization."""
    inputs, mean, rstd = (saved(node, name) for name in ("input", "result1", "result2"))
    if inputs is None or mean is None or rstd is None:
        return None
    values = inputs.to(mean.dtype)
    if node.name() == "NativeGroupNormBackward0":
        values = values.flatten(1).unflatten(1, (mean.shape[1], -1))
        mean, rstd = mean[..., None], rstd[..., None]
    return ((values - mean) * rstd).view(inputs.shape)


def _own(shape: torch.Size) -> list[int]:
    """Return the dimensions of a broadcast parameter, without leading ones."""
    own = list(shape)
    while own and own[0] == 1:
        own.pop(0)
    return own


def leading_dimensions(use: Use, shape: torch.Size, dimensions: int) -> int:
    """Return how many dimensions of an operation's output index its positions."""
    match use.operation:
        case "EmbeddingBackward0":
            return dimensions - 1
        case "NativeLayerNormBackward0" | "AddBackward0" | "MulBackward0" | "ExpandBackward0":
            return dimensions - len(_own(shape))
    return 1
