"""Metrics that torchmetrics lacks: dense prediction as the multi-task papers report it."""

from multitask.metrics.depth import DepthAbsoluteError, DepthRelativeError
from multitask.metrics.normals import AngleMean, AngleMedian, AngleWithin
from multitask.metrics.segmentation import MeanIoU, PixelAccuracy

__all__ = [
    "AngleMean",
    "AngleMedian",
    "AngleWithin",
    "DepthAbsoluteError",
    "DepthRelativeError",
    "MeanIoU",
    "PixelAccuracy",
]
