"""Metrics that torchmetrics lacks: dense prediction as reported by multi-task papers, and R² without cancellation."""

from multitask.metrics.areas import BinaryAUROC
from multitask.metrics.depth import DepthAbsoluteError, DepthRelativeError
from multitask.metrics.normals import AngleMean, AngleMedian, AngleWithin
from multitask.metrics.regression import R2, RelativeL2
from multitask.metrics.segmentation import MeanIoU, PixelAccuracy

__all__ = [
    "R2",
    "AngleMean",
    "AngleMedian",
    "AngleWithin",
    "BinaryAUROC",
    "DepthAbsoluteError",
    "DepthRelativeError",
    "MeanIoU",
    "PixelAccuracy",
    "RelativeL2",
]
