"""Convolutions with normalization and activation."""

import math
from typing import Literal

from torch import nn

Norm = Literal["batch", "group", "none"]


def normalization(kind: Norm, channels: int) -> nn.Module:
    """Return a normalization layer for maps ``[batch, channels, h, w]``; raise ``ValueError`` for an unknown kind.

    With ``batch``, an example's features depend on the rest of its batch, so that accumulated micro-batches
    differ from one large batch; with ``group`` they do not.
    """
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(math.gcd(8, channels), channels)
        case "none":
            return nn.Identity()
    raise ValueError(f"trunk.norm={kind} is unknown; choose batch, group or none.")


def convolution(channels: int, kernel: int = 3, stride: int = 1, norm: Norm = "batch") -> nn.Sequential:
    """Return convolution, normalization and ReLU: ``[batch, c, h, w]`` → ``[batch, channels, h / stride, w / stride]``.

    The input channels are inferred at the first call; the padding is half of the kernel size.
    """
    return nn.Sequential(
        nn.LazyConv2d(channels, kernel, stride=stride, padding=kernel // 2, bias=norm == "none"),
        normalization(norm, channels),
        nn.ReLU(),
    )


def pooled_convolution(channels: int, kernel: int = 3, norm: Norm = "batch") -> nn.Sequential:
    """Return :func:`convolution` with 2×2 max pooling: → ``[batch, channels, h / 2, w / 2]``."""
    return nn.Sequential(convolution(channels, kernel, norm=norm), nn.MaxPool2d(2))


def grouped_convolution(channels: int, stride: int = 1) -> list[nn.Module]:
    """Return the layers of a 3×3 convolution with group normalization, in four groups, and ReLU."""
    convolution = nn.LazyConv2d(channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(4, channels), nn.ReLU()]
