"""Whether tensors are free of NaN and infinity."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Return of each tensor whether all its numbers are finite; where they are, the device is waited for once."""
    sums = torch.stack([tensor.sum() for tensor in tensors]).tolist()
    # A sum of finite numbers can overflow, so that one which is not finite proves nothing.
    return [
        math.isfinite(total) or bool(tensor.isfinite().all())
        for total, tensor in zip(sums, tensors, strict=True)
    ]
