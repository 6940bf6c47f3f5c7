"""Mean intersection over union and pixel accuracy."""

import torch
from torch import Tensor

from multitask.metrics.pooling import Pooled


class _Confusion(Pooled):
    """Accumulates the confusion matrix over pixels.

    ``prediction``: logits ``[batch, classes, ...]``; ``target``: classes ``[batch, ...]``, ``ignore_index``
    where unlabelled. Raises ``ValueError`` if the shapes do not match or a class is out of range.
    """

    higher_is_better = True

    def __init__(self, num_classes: int, ignore_index: int = -1, pooling: str = "pixels") -> None:
        super().__init__(f"confusion_{num_classes}_{ignore_index}", num_classes**2, pooling)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the confusion matrix of one batch, flattened."""
        expected = (target.shape[0], self.num_classes, *target.shape[1:])
        if prediction.shape != expected:
            raise ValueError(
                f"Segmentation metrics need logits of shape {list(expected)}, got {list(prediction.shape)}; "
                "make tasks.*.head give one channel per class."
            )
        valid = target != self.ignore_index
        target = target[valid]
        if target.numel() and (target.min() < 0 or target.max() >= self.num_classes):
            raise ValueError(
                f"A segmentation target has classes {int(target.min())} to {int(target.max())}, outside "
                f"metrics.*.num_classes={self.num_classes} and metrics.*.ignore_index={self.ignore_index}."
            )
        cells = target * self.num_classes + prediction.argmax(dim=1)[valid]
        return torch.bincount(cells, minlength=self.num_classes**2)


class MeanIoU(_Confusion):
    """Mean over classes of |prediction ∩ target| / |prediction ∪ target|, without classes that occur in neither."""

    def value(self, sums: Tensor) -> Tensor:
        """Return the mean intersection over union, in [0, 1]."""
        matrix = sums.view(self.num_classes, self.num_classes)
        union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        return (matrix.diagonal() / union)[union > 0].mean()


class PixelAccuracy(_Confusion):
    """Share of the labelled pixels that are classified correctly."""

    def value(self, sums: Tensor) -> Tensor:
        """Return the accuracy, in [0, 1]."""
        return sums.view(self.num_classes, self.num_classes).trace() / sums.sum()
