"""Angle between predicted and true surface normals: mean, median, share within a threshold."""

import torch
from torch import Tensor

from multitask.metrics.pooling import Pooled, same_shape


def angles(prediction: Tensor, target: Tensor) -> Tensor:
    """Angle at each valid pixel, in degrees in [0, 180], float64, one dimension.

    ``prediction`` and ``target``: ``[batch, 3, height, width]``, of any length; pixels whose target is the
    zero vector or NaN are invalid. The angle is 2·atan2(|u − v|, |u + v|), which stays exact near 0 and 180
    degrees where the arc cosine loses half of the digits. A zero prediction is at 90 degrees from
    everything.
    """
    same_shape("Normal metrics", prediction, target)
    valid = (target != 0).any(dim=1) & target.isfinite().all(dim=1)
    u = _unit(prediction.movedim(1, -1)[valid].double())
    v = _unit(target.movedim(1, -1)[valid].double())
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)))


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


class AngleMean(Pooled):
    """Mean angle in degrees."""

    is_differentiable = False
    higher_is_better = False

    def __init__(self, pooling: str = "pixels") -> None:
        super().__init__("angles", 2, pooling)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Sum of the angles, and number of valid pixels."""
        found = angles(prediction, target)
        return torch.stack([found.sum(), found.new_tensor(len(found))])

    def figure(self, sums: Tensor) -> Tensor:
        """Mean angle."""
        return sums[0] / sums[1]


class AngleMedian(Pooled):
    """Median angle in degrees, to half a ``bin_width``.

    The angles of a whole data set are too many to keep (72 million for NYUv2's validation set): a histogram
    is kept, whose middle is as exact as its bins are narrow, and which sums over processes.
    """

    is_differentiable = False
    higher_is_better = False

    def __init__(self, pooling: str = "pixels", bin_width: float = 0.005) -> None:
        bins = round(180 / bin_width)
        super().__init__(f"histogram_{bins}", bins, pooling)
        self.bins = bins

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Histogram of the angles."""
        cells = (angles(prediction, target) * (self.bins / 180)).long().clamp(max=self.bins - 1)
        return torch.bincount(cells, minlength=self.bins)

    def figure(self, sums: Tensor) -> Tensor:
        """Middle of the bin of the lower median (as ``torch.median``)."""
        total = sums.sum()
        if total == 0:
            return sums.new_tensor(float("nan"))
        rank = torch.div(total + 1, 2, rounding_mode="floor")
        return (torch.searchsorted(sums.cumsum(0), rank) + 0.5) * (180 / self.bins)


class AngleWithin(Pooled):
    """Share of the pixels whose angle is under ``degrees`` (the papers give 11.25, 22.5 and 30)."""

    is_differentiable = False
    higher_is_better = True

    def __init__(self, degrees: float, pooling: str = "pixels") -> None:
        super().__init__(f"within_{degrees}", 2, pooling)
        self.degrees = degrees

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Number of pixels within the threshold, and number of valid pixels."""
        found = angles(prediction, target)
        return torch.stack([(found < self.degrees).sum(), found.new_tensor(len(found))])

    def figure(self, sums: Tensor) -> Tensor:
        """Share in [0, 1]."""
        return sums[0] / sums[1]
