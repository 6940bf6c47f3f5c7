"""An encoder-decoder that unpools by the indices of max pooling."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, max_unpool2d

from multitask.nn.blocks import Norm, convolution


class SegNet(nn.Module):
    """Images ``[batch, c, h, w]`` → features ``[batch, channels[0], h, w]``.

    The decoder upsamples by the max-pooling indices of the encoder. (SegNet: A Deep Convolutional Encoder-Decoder
    Architecture for Image Segmentation, 2015.)

    Args:
        channels: Channels of each level, finest first; each level halves the size.
        depths: Number of convolutions of each level, at least one level; another length raises ``ValueError``.
        norm: See :func:`multitask.nn.blocks.normalization`.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if not channels or len(channels) != len(depths):
            raise ValueError(
                f"trunk.depths={list(depths)} must be as long as trunk.channels={list(channels)}."
            )
        self.down = nn.ModuleList(_level([c] * d, norm) for c, d in zip(channels, depths, strict=True))
        # The last convolution of a decoder level has the channels of the next finer level.
        leaving = [channels[0], *channels[:-1]]
        self.up = nn.ModuleList(
            _level([c] * (d - 1) + [last], norm)
            for c, d, last in reversed(list(zip(channels, depths, leaving, strict=True)))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of every pixel."""
        maps, pooled = images, []
        for level in self.down:
            maps = level(maps)
            size = maps.shape[-2:]
            maps, indices = max_pool2d(maps, 2, return_indices=True)
            pooled.append((indices, size))
        for level, (indices, size) in zip(self.up, reversed(pooled), strict=True):
            maps = level(max_unpool2d(maps, indices, [2, 2], output_size=size))
        return maps


def _level(channels: Sequence[int], norm: Norm) -> nn.Sequential:
    return nn.Sequential(*(convolution(c, norm=norm) for c in channels))
