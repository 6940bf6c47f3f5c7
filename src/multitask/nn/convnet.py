"""A plain convolutional network for whole images."""

from collections.abc import Sequence

from torch import nn

from multitask.nn.blocks import grouped_convolution


def convnet(channels: Sequence[int] = (32, 64, 128, 256), width: int = 256) -> nn.Sequential:
    """Return convolutions of stride 2, global average pooling and one linear layer.

    Images ``[batch, c, h, w]`` → features ``[batch, width]``; the channels of the convolutions are multiples of 4.
    """
    layers = [layer for number in channels for layer in grouped_convolution(number, stride=2)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(width), nn.ReLU()]
    return nn.Sequential(*layers)
