"""A small encoder-decoder for dense prediction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _block(channels: int) -> nn.Sequential:
    """Two 3×3 convolutions; normalized by groups, so that no example depends on the rest of its batch."""
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

    Each level halves the size, going down by maxima and up by nearest neighbours, with a link across. Any
    size will do: odd ones are rounded down and up again.

    Args:
        channels: Channels of each level, the finest first; multiples of 4.

    Raises:
        ValueError: If there is no level, or a number of channels is no multiple of 4.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        if not channels or any(c <= 0 or c % 4 for c in channels):
            raise ValueError(f"trunk.channels={list(channels)} must be one or more multiples of 4.")
        self.down = nn.ModuleList(_block(c) for c in channels)
        self.up = nn.ModuleList(_block(c) for c in reversed(channels[:-1]))

    def forward(self, images: Tensor) -> Tensor:
        """Features of every pixel."""
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
