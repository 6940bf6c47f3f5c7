"""A small encoder-decoder for dense prediction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multitask.nn.blocks import grouped_convolution


def _block(channels: int) -> nn.Sequential:
    return nn.Sequential(*grouped_convolution(channels), *grouped_convolution(channels))


class UNet(nn.Module):
    """Images ``[batch, c, h, w]`` → features ``[batch, channels[0], h, w]`` (U-Net, 2015).

    Each level halves the size by max pooling; the decoder upsamples by nearest neighbours, with skip connections.
    Images may have any size. Group normalization keeps examples independent of their batch.

    Args:
        channels: Channels of each level, finest first: one or more multiples of 4, or it raises ``ValueError``.
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
