"""A shared network, and for each task masks on its features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from multitask.nn.blocks import Norm, convolution, normalization
from multitask.nn.copies import Make, one_a_task


class Block(nn.Module):
    """Two shared convolutions, and one mask per task on the second one's output.

    Args:
        tasks: The tasks' names.
        channels: Channels of the output.
        norm: See :func:`multitask.nn.blocks.normalization`.
        first: Whether there are no attended features from a block before.
    """

    def __init__(self, tasks: Sequence[str], channels: int, norm: Norm, first: bool) -> None:
        super().__init__()
        self.entry = convolution(channels, norm=norm)
        self.exit = convolution(channels, norm=norm)
        self.carry = None if first else convolution(channels, norm=norm)
        self.masks = one_a_task(lambda: _mask(channels, norm), tasks, "trunk")

    def forward(
        self, shared: Tensor, attended: dict[str, Tensor] | None, size: tuple[int, int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the shared features and each task's, both of the spatial ``size``."""
        entry = self.entry(_resize(shared, size))
        shared = self.exit(entry)
        found = {}
        for task, mask in self.masks.items():
            seen = entry
            if self.carry is not None and attended is not None:
                seen = torch.cat([entry, _carried(self.carry, attended[task], size)], dim=1)
            found[task] = mask(seen) * shared
        return shared, found


class MTAN(nn.Module):
    """Task-specific attention on a shared convolutional network.

    (End-to-End Multi-Task Learning with Attention, 2019.)

    Args:
        tasks: The tasks' names.
        channels: Channels of each level, the finest first; each level halves the size.
        dense: Whether to go back up to the size of the input: features ``[batch, channels[0], h, w]``.
        branch: Makes what follows for each task, for example a flattening and a linear layer;
            ``None`` leaves maps.
        norm: See :func:`multitask.nn.blocks.normalization`.

    Raises:
        ValueError: If there are no channels.
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
        self.branches = one_a_task(branch or nn.Identity, tasks, "trunk.branch")

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return each task's features."""
        height, width = inputs.shape[-2:]
        sizes = [(height >> i, width >> i) for i in range(self.levels)]
        sizes += reversed(sizes[:-1])
        shared, attended = inputs, None
        # Without a way up there are more sizes than blocks.
        for block, size in zip(self.blocks, sizes, strict=False):
            shared, attended = block(shared, attended, size)
        assert attended is not None
        return {task: branch(attended[task]) for task, branch in self.branches.items()}


def _mask(channels: int, norm: Norm) -> nn.Sequential:
    """Two 1×1 convolutions, the last through a sigmoid."""
    return nn.Sequential(
        convolution(channels, kernel=1, norm=norm),
        nn.Conv2d(channels, channels, kernel_size=1, bias=norm == "none"),
        normalization(norm, channels),
        nn.Sigmoid(),
    )


def _carried(carry: nn.Module, attended: Tensor, size: tuple[int, int]) -> Tensor:
    """Convolve at the finer of both sizes."""
    if attended.shape[-2] >= size[0]:
        return _resize(carry(attended), size)
    return carry(_resize(attended, size))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    if maps.shape[-2] > size[0]:
        return max_pool2d(maps, 2)
    return interpolate(maps, size, mode="bilinear", align_corners=False)
