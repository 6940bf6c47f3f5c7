"""A shared network with attention masks for each task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from multitask.nn.blocks import Norm, convolution, normalization
from multitask.nn.copies import Make, one_per_task


class Block(nn.Module):
    """Two shared convolutions, and one mask per task on the output of the second; the first gets no task's features."""

    def __init__(self, tasks: Sequence[str], channels: int, norm: Norm, first: bool) -> None:
        super().__init__()
        self.entry = convolution(channels, norm=norm)
        self.exit = convolution(channels, norm=norm)
        self.carry = None if first else convolution(channels, norm=norm)
        self.masks = one_per_task(lambda: _mask(channels, norm), tasks, "trunk")

    def forward(
        self, shared: Tensor, attended: dict[str, Tensor] | None, size: tuple[int, int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the shared features and each task's features, of spatial size ``size``."""
        entry = self.entry(_resize(shared, size))
        shared = self.exit(entry)
        features = {}
        for task, mask in self.masks.items():
            visible = entry
            if self.carry is not None and attended is not None:
                visible = torch.cat([entry, _carried(self.carry, attended[task], size)], dim=1)
            features[task] = mask(visible) * shared
        return shared, features


class MTAN(nn.Module):
    """Task-specific attention on a shared convolutional network.

    (End-to-End Multi-Task Learning with Attention, 2019.)

    Args:
        tasks: The tasks' names.
        channels: Channels of each level, finest first; each level halves the size. ``ValueError`` if there are none.
        dense: Whether to upsample back to the input size: features ``[batch, channels[0], h, w]``.
        branch: Factory for a network that follows for each task, such as a Flatten and a linear layer; ``None``
            returns the maps.
        norm: See :func:`multitask.nn.blocks.normalization`.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        channels: Sequence[int] = (32, 64, 128),
        dense: bool = False,
        branch: Make | None = None,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("trunk.channels=[] leaves no level; give the channels of at least one.")
        widths = [*channels, *reversed(channels[:-1])] if dense else [*channels]
        self.levels = len(channels)
        self.blocks = nn.ModuleList(Block(tasks, width, norm, i == 0) for i, width in enumerate(widths))
        self.branches = one_per_task(branch or nn.Identity, tasks, "trunk.branch")

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return each task's features."""
        height, width = inputs.shape[-2:]
        sizes = [(height >> i, width >> i) for i in range(self.levels)]
        sizes += reversed(sizes[:-1])
        shared, attended = inputs, None
        # Without upsampling there are more sizes than blocks.
        for block, size in zip(self.blocks, sizes, strict=False):
            shared, attended = block(shared, attended, size)
        assert attended is not None
        return {task: branch(attended[task]) for task, branch in self.branches.items()}


def _mask(channels: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        convolution(channels, kernel=1, norm=norm),
        nn.Conv2d(channels, channels, kernel_size=1, bias=norm == "none"),
        normalization(norm, channels),
        nn.Sigmoid(),
    )


def _carried(carry: nn.Module, attended: Tensor, size: tuple[int, int]) -> Tensor:
    """Convolve at the finer of the two sizes."""
    if attended.shape[-2] >= size[0]:
        return _resize(carry(attended), size)
    return carry(_resize(attended, size))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    if maps.shape[-2] > size[0]:
        return max_pool2d(maps, 2)
    return interpolate(maps, size, mode="bilinear", align_corners=False)
