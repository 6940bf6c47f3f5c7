"""Parameters that shift or scale what an operation writes: their gradients are sums over positions."""

from collections.abc import Callable

import torch
from torch import Tensor

from multitask.gradients.operands import saved
from multitask.gradients.uses import Use

Columns = Callable[[Tensor], Tensor]


def is_bias(use: Use, shape: torch.Size) -> bool:
    """Return whether a parameter is the bias of a linear layer or a convolution."""
    match use.operation, use.place, use.transposed:
        case "AddmmBackward0", 0, False:
            return use.node._saved_beta == 1 and shape == use.node._saved_mat2_sym_sizes[1:]
        case "ConvolutionBackward0", 2, False:
            return True
    return False


def affine_columns(use: Use, shape: torch.Size) -> Columns | None:
    """Return how a parameter's gradients by position follow from those of what its operation writes.

    The result takes gradients ``[k, *output]`` to ``[k, positions, numel]``. Known are the biases of linear
    layers and convolutions, scales and shifts of layer and group normalization, and parameters that are
    added, multiplied or repeated; ``None`` for all else.
    """
    if is_bias(use, shape):
        # The positions of a convolution are its images.
        return lambda gradient: gradient if use.operation == "AddmmBackward0" else gradient.flatten(3).sum(3)
    if use.transposed:
        return None
    match use.operation, use.place:
        case "NativeLayerNormBackward0", 2:
            return lambda gradient: gradient.flatten(1, -1 - len(shape)).flatten(2)
        case "NativeLayerNormBackward0", 1:
            return _layer_norm_scale(use, shape)
        case "NativeGroupNormBackward0", 2:
            return lambda gradient: gradient.flatten(2).unflatten(2, (shape[0], -1)).sum(3)
        case "NativeGroupNormBackward0", 1:
            return _group_norm_scale(use, shape)
        case "AddBackward0", place if place == 0 or use.node._saved_alpha == 1:
            return lambda gradient: _reduce(gradient, shape)
        case "ExpandBackward0", _:
            return lambda gradient: _reduce(gradient, shape)
        case "MulBackward0", place:
            other = saved(use.node, "other" if place == 0 else "self")
            if other is not None:
                return lambda gradient: _reduce(gradient * other.to(gradient.dtype), shape)
    return None


def _layer_norm_scale(use: Use, shape: torch.Size) -> Columns | None:
    inputs, mean, rstd = (saved(use.node, name) for name in ("input", "result1", "result2"))
    if inputs is None or mean is None or rstd is None:
        return None
    normalized = (inputs.to(mean.dtype) - mean) * rstd
    return lambda g: (g * normalized.to(g.dtype)).flatten(1, -1 - len(shape)).flatten(2)


def _group_norm_scale(use: Use, shape: torch.Size) -> Columns | None:
    inputs, mean, rstd = (saved(use.node, name) for name in ("input", "result1", "result2"))
    if inputs is None or mean is None or rstd is None:
        return None
    groups = inputs.to(mean.dtype).flatten(1).unflatten(1, (mean.shape[1], -1))
    normalized = (groups - mean[..., None]) * rstd[..., None]
    normalized = normalized.view(len(inputs), shape[0], -1)
    return lambda g: (g.flatten(2).unflatten(2, (shape[0], -1)) * normalized.to(g.dtype)).sum(3)


def _reduce(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Sum over what a parameter was broadcast to within a position."""
    own = _own(shape)
    positions = gradient.flatten(1, -1 - len(own)) if own else gradient.flatten(1)[..., None]
    dims = [2 + d for d, size in enumerate(own) if size == 1]
    return (positions.sum(dims) if dims else positions).flatten(2)


def _own(shape: torch.Size) -> list[int]:
    """Return the dimensions of a broadcast parameter, without leading ones."""
    own = list(shape)
    while own and own[0] == 1:
        own.pop(0)
    return own


def leading_dimensions(use: Use, shape: torch.Size, dimensions: int) -> int:
    """Return how many of the dimensions of what an operation writes number its positions."""
    match use.operation:
        case "EmbeddingBackward0":
            return dimensions - 1
        case "NativeLayerNormBackward0":
            return dimensions - len(shape)
        case "AddBackward0" | "MulBackward0" | "ExpandBackward0":
            return dimensions - len(_own(shape))
    return 1
