"""Convolutions with what usually follows them."""

import math
from typing import Literal

from torch import nn

Norm = Literal["batch", "group", "none"]


def normalization(kind: Norm, channels: int) -> nn.Module:
    """Return a normalization of maps ``[batch, channels, h, w]``.

    ``batch`` makes an example's features depend on the rest of its batch, so that accumulated
    micro-batches differ from one large batch; ``group`` does not.

    Raises:
        ValueError: If the kind is not known.
    """
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(math.gcd(8, channels), channels)
        case "none":
            return nn.Identity()
    raise ValueError(f"trunk.norm={kind} is not known; choose batch, group or none.")


def convolution(channels: int, kernel: int = 3, stride: int = 1, norm: Norm = "batch") -> nn.Sequential:
    """Return convolution, normalization and ReLU.

    ``[batch, c, h, w]`` → ``[batch, channels, h / stride, w / stride]``.

    Args:
        channels: Channels of the output; those of the input are found at the first call.
        kernel: Size of the kernel; the border is padded by half of it.
        stride: Step of the kernel.
        norm: See :func:`normalization`.
    """
    return nn.Sequential(
        nn.LazyConv2d(channels, kernel, stride=stride, padding=kernel // 2, bias=norm == "none"),
        normalization(norm, channels),
        nn.ReLU(),
    )


def pooled_convolution(channels: int, kernel: int = 3, norm: Norm = "batch") -> nn.Sequential:
    """Return :func:`convolution` and a 2×2 maximum: → ``[batch, channels, h / 2, w / 2]``."""
    return nn.Sequential(convolution(channels, kernel, norm=norm), nn.MaxPool2d(2))
