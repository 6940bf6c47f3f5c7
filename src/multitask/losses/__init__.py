"""Losses that torch lacks, and what the mean of a loss is over."""

from multitask.losses.pixels import DepthL1, NormalCosine, Pinball, PixelCrossEntropy

__all__ = ["DepthL1", "NormalCosine", "Pinball", "PixelCrossEntropy"]
