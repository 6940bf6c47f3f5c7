"""An encoder–decoder that remembers where the maxima were."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, max_unpool2d

from multitask.nn.blocks import Norm, convolution


class SegNet(nn.Module):
    """Images ``[batch, c, h, w]`` → features ``[batch, channels[0], h, w]``.

    The way down keeps the positions of its maxima, and the way up puts values back there.
    (SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation, 2015.)

    Args:
        channels: Channels of each level, the finest first; each level halves the size.
        depths: Convolutions of each level.
        norm: See :func:`multitask.nn.blocks.normalization`.

    Raises:
        ValueError: If there are no levels, or not as many depths.
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
        # The last convolution of a level on the way up has the channels of the level above it.
        leaving = [channels[0], *channels[:-1]]
        self.up = nn.ModuleList(
            _level([c] * (d - 1) + [last], norm)
            for c, d, last in reversed(list(zip(channels, depths, leaving, strict=True)))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features of every pixel."""
        maps, places = images, []
        for level in self.down:
            maps = level(maps)
            size = maps.shape[-2:]
            maps, indices = max_pool2d(maps, 2, return_indices=True)
            places.append((indices, size))
        for level, (indices, size) in zip(self.up, reversed(places), strict=True):
            maps = level(max_unpool2d(maps, indices, [2, 2], output_size=size))
        return maps


def _level(channels: Sequence[int], norm: Norm) -> nn.Sequential:
    return nn.Sequential(*(convolution(c, norm=norm) for c in channels))
