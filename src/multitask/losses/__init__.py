"""Losses that torch lacks, and the counts that their means are over."""

from multitask.losses.pixels import DepthL1, NormalCosine, Pinball, PixelCrossEntropy

__all__ = ["DepthL1", "NormalCosine", "Pinball", "PixelCrossEntropy"]
