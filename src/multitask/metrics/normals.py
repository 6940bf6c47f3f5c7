"""Angles between predicted and true surface normals: mean, median, and share within a threshold."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from multitask.losses.pixels import same_shape
from multitask.metrics.pooling import Pooled


def angles(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the angle at each valid pixel in degrees, ``[k]`` in float64.

    ``prediction`` and ``target``: ``[batch, 3, height, width]``, not necessarily normalized; pixels whose target is
    zero or NaN are invalid. The angle is 2·atan2(|u − v|, |u + v|), which is accurate near 0 and 180 degrees, where
    the arccosine loses half of the digits. A zero prediction has an angle of 90 degrees.
    """
    same_shape("Normal metrics", prediction, target)
    valid = (target != 0).any(dim=1) & target.isfinite().all(dim=1)
    u, v = (normalize(x.movedim(1, -1)[valid].double(), dim=-1) for x in (prediction, target))
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)))


class AngleMean(Pooled):
    """Mean angle in degrees."""

    higher_is_better = False

    def __init__(self, pooling: str = "pixels") -> None:
        super().__init__("angles", 2, pooling)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the sum of angles and the number of valid pixels."""
        valid = angles(prediction, target)
        return torch.stack([valid.sum(), valid.new_tensor(len(valid))])


class AngleMedian(Pooled):
    """Median angle in degrees, accurate to half a ``bin_width``.

    It is computed from a histogram, since a data set has too many angles to store (72 million in NYUv2's validation
    set).
    """

    higher_is_better = False

    def __init__(self, pooling: str = "pixels", bin_width: float = 0.005) -> None:
        bins = round(180 / bin_width)
        super().__init__(f"histogram_{bins}", bins, pooling)
        self.bins = bins

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the histogram of the angles."""
        cells = (angles(prediction, target) * (self.bins / 180)).long().clamp(max=self.bins - 1)
        return torch.bincount(cells, minlength=self.bins)

    def value(self, sums: Tensor) -> Tensor:
        """Return the centre of the bin of the lower median, as in ``torch.median``."""
        total = sums.sum()
        if total == 0:
            return sums.new_tensor(float("nan"))
        rank = torch.div(total + 1, 2, rounding_mode="floor")
        return (torch.searchsorted(sums.cumsum(0), rank) + 0.5) * (180 / self.bins)


class AngleWithin(Pooled):
    """Share of pixels whose angle is below ``degrees`` (11.25, 22.5 and 30 in the papers)."""

    higher_is_better = True

    def __init__(self, degrees: float, pooling: str = "pixels") -> None:
        super().__init__(f"within_{degrees}", 2, pooling)
        self.degrees = degrees

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the number of pixels below the threshold and the number of valid pixels."""
        valid = angles(prediction, target)
        return torch.stack([(valid < self.degrees).sum(), valid.new_tensor(len(valid))])
