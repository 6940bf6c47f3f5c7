"""Layers between images, tokens and heads that torch's transformers lack."""

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin


class Patches(LazyModuleMixin, nn.Module):
    """Images ``[batch, c, h, w]`` → tokens ``[batch, patches, width]`` with learned position embeddings.

    Patches are ``size`` × ``size`` pixels. (An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale,
    2020.)
    """

    cls_to_become = None
    positions: nn.UninitializedParameter | nn.Parameter

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.project = nn.LazyConv2d(width, size, stride=size)
        self.positions = nn.UninitializedParameter()

    def initialize_parameters(self, images: Tensor) -> None:
        """Infer the number of patches from the first images."""
        if isinstance(self.positions, nn.UninitializedParameter):
            (size, _), width = self.project.kernel_size, self.project.out_channels
            count = (images.shape[-2] // size) * (images.shape[-1] // size)
            self.positions.materialize((count, width))
            with torch.no_grad():
                self.positions.normal_(std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return one token per patch."""
        return self.project(images).flatten(2).transpose(1, 2) + self.positions


class Mean(nn.Module):
    """Tokens ``[batch, tokens, width]`` → their mean ``[batch, width]``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean over the tokens."""
        return tokens.mean(dim=1)


class First(nn.Module):
    """Tokens ``[batch, tokens, width]`` → the first token ``[batch, width]``, such as ``[CLS]``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the first token."""
        return tokens[:, 0]


class ClassesFirst(nn.Module):
    """Scores ``[batch, tokens, classes]`` → ``[batch, classes, tokens]``, as torch's losses expect."""

    def forward(self, scores: Tensor) -> Tensor:
        """Return the transposed scores."""
        return scores.transpose(1, 2)
