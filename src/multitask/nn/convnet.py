"""A plain convolutional network for whole images."""

from collections.abc import Sequence

from torch import nn


def convnet(channels: Sequence[int] = (32, 64, 128, 256), width: int = 256) -> nn.Sequential:
    """Return convolutions of stride 2, global average pooling and one linear layer.

    Args:
        channels: Channels of the convolutions on images ``[batch, c, h, w]``; multiples of 4.
        width: Width of the features ``[batch, width]``.
    """
    layers: list[nn.Module] = []
    for number in channels:
        layers += [
            nn.LazyConv2d(number, kernel_size=3, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, number),
            nn.ReLU(),
        ]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(width), nn.ReLU()]
    return nn.Sequential(*layers)
