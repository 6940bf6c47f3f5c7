"""Residual networks with blocks of two convolutions."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from multitask.nn.blocks import Norm, normalization


class Residual(nn.Module):
    """Two 3×3 convolutions with a shortcut: ``[batch, c, h, w]`` → ``[batch, channels, h / stride, w / stride]``."""

    def __init__(self, entering: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(entering, channels, 3, stride=stride, padding=1, bias=False),
            normalization(norm, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            normalization(norm, channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or entering != channels:
            resized = nn.Conv2d(entering, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(resized, normalization(norm, channels))
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Return the output maps."""
        return self.relu(self.residual(maps) + self.shortcut(maps))


def resnet(
    blocks: Sequence[int] = (2, 2, 2, 2),
    width: int = 64,
    stem: Literal["large", "small"] = "large",
    pool: bool = True,
    norm: Norm = "batch",
) -> nn.Sequential:
    """Return a residual network, by default ResNet-18 (Deep Residual Learning for Image Recognition, 2016).

    Args:
        blocks: Number of blocks of each stage.
        width: Channels of the first stage; each further stage doubles them and halves the size.
        stem: ``large`` for photographs, a 7×7 convolution with stride 2 and max pooling; ``small`` for images of
            about 32×32, one 3×3 convolution; others raise ``ValueError``.
        pool: Whether to average over positions: features ``[batch, width · 2^(stages − 1)]``, otherwise maps.
        norm: See :func:`multitask.nn.blocks.normalization`.
    """
    if stem not in ("large", "small"):
        raise ValueError(f"trunk.stem={stem} is unknown; choose large or small.")
    kernel, stride = (7, 2) if stem == "large" else (3, 1)
    layers: list[nn.Module] = [
        nn.LazyConv2d(width, kernel, stride=stride, padding=kernel // 2, bias=False),
        normalization(norm, width),
        nn.ReLU(),
    ]
    if stem == "large":
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    entering = width
    for stage, count in enumerate(blocks):
        channels = width * 2**stage
        for i in range(count):
            layers.append(Residual(entering, channels, 2 if stage and i == 0 else 1, norm))
            entering = channels
    if pool:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, nn.LazyConv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
