"""PCGrad: gradients without their conflicting parts."""

import numpy as np
import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import WeightedMethod
from multitask.weighting.gramian import checked, cosines, like


class PCGrad(WeightedMethod):
    """Each gradient is projected onto the normal plane of each other that it conflicts with.

    The others come in random order; the result is the sum of the projected gradients. It is torchjd's
    method with its random numbers, some twenty times as fast for forty tasks.

    "Gradient Surgery for Multi-Task Learning" (Yu et al., 2020), Algorithm 1.
    """

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weights of the sum of the projected gradients."""
        gramian = checked(gradients)
        C, norms = cosines(gramian)
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
        return like(gramian, np.divide(total, norms, out=np.zeros_like(total), where=norms > 0))
