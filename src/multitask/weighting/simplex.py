"""The probability simplex: weights that are not negative and sum to one."""

import numpy as np
import torch
from torch import Tensor

from multitask.weighting.gramian import Array


def project_onto_simplex(vector: Tensor) -> Tensor:
    """Return the point of the simplex next to ``vector``, shape ``[k]``."""
    nearest = nearest_on_simplex(vector.detach().double().cpu().numpy())
    return torch.as_tensor(nearest, dtype=vector.dtype, device=vector.device)


def nearest_on_simplex(vector: Array) -> Array:
    """Return the point of the simplex next to ``vector``, shape ``[k]``."""
    descending = -np.sort(-vector)
    shifts = (np.cumsum(descending) - 1) / np.arange(1, len(vector) + 1)
    # The largest rank at which an entry still stays above its shift decides.
    return np.clip(vector - shifts[np.nonzero(descending > shifts)[0][-1]], 0.0, None)
