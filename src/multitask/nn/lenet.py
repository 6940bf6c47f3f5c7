"""The LeNet trunk of the MultiMNIST experiments."""

from collections.abc import Sequence

from torch import nn


def lenet(width: int = 50, channels: Sequence[int] = (10, 20)) -> nn.Sequential:
    """Return two convolutions and a linear layer (Multi-Task Learning as Multi-Objective Optimization, 2018).

    Images ``[batch, 1, 28, 28]`` → features ``[batch, width]``.
    """
    first, second = channels
    return nn.Sequential(
        nn.LazyConv2d(first, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(first, second, kernel_size=5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(width),
        nn.ReLU(),
    )
