"""A small encoder-decoder for dense prediction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _block(channels: int) -> nn.Sequential:
    """Return two 3×3 convolutions with group normalization, so that examples do not depend on their batch."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [
            nn.LazyConv2d(channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(4, channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Images ``[batch, c, h, w]`` → features ``[batch, channels[0], h, w]`` (U-Net, 2015).

    Each level halves the size by max pooling; the decoder upsamples by nearest neighbours, with skip connections.
    Images may have any size.

    Args:
        channels: Channels of each level, finest first; multiples of 4.

    Raises:
        ValueError: If there is no level, or a number of channels is not a multiple of 4.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        if not channels or any(c <= 0 or c % 4 for c in channels):
            raise ValueError(f"trunk.channels={list(channels)} must be one or more multiples of 4.")
        self.down = nn.ModuleList(_block(c) for c in channels)
        self.up = nn.ModuleList(_block(c) for c in reversed(channels[:-1]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of every pixel."""
        features, finer = images, []
        for level, block in enumerate(self.down):
            if level:
                finer.append(features)
                features = nn.functional.max_pool2d(features, 2)
            features = block(features)
        for block, skipped in zip(self.up, reversed(finer), strict=True):
            features = nn.functional.interpolate(features, skipped.shape[-2:], mode="nearest")
            features = block(torch.cat([features, skipped], dim=1))
        return features
