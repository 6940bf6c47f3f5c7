"""IMTL, "Towards Impartial Multi-task Learning" (Liu et al., 2021): impartial to losses, gradients, or both."""

import numpy as np
import torch
from torch import Tensor

from multitask.weighting.base import Scalarization
from multitask.weighting.gramian import Array, CosineMethod, per_unit, with_products
from multitask.weighting.task_parameters import Learned


class IMTLL(Learned, Scalarization):
    """IMTL-L: Σ exp(s) L − s, with one log-scale s per task, trained by the optimizer.

    "Towards Impartial Multi-task Learning" (Liu et al., 2021), Algorithm 1.
    """

    learned = "log_scale"
    linear = True

    def forward(self, losses: Tensor) -> Tensor:
        s = self.numbers()
        return (torch.exp(s) * losses - s).sum()


class IMTLG(CosineMethod):
    """IMTL-G: the combination with weights of sum one that has equal projections on all gradients.

    If the gradients are linearly dependent, the projections are equal in the least-squares sense. The combination is
    zero if equal projections are impossible or need weights of sum zero.

    "Towards Impartial Multi-task Learning" (Liu et al., 2021), Equation 6.
    """

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        return _of_sum_one(_equal_projections(C, norms, ridge), 1.0, ridge)


class IMTL(Learned, CosineMethod):
    """IMTL: losses scaled as in IMTL-L, whose gradients in the trunk are combined as in IMTL-G.

    The sum of the scaled losses exp(s) L − s trains the heads and s; the combination of their gradients with equal
    projections trains the trunk.

    "Towards Impartial Multi-task Learning" (Liu et al., 2021), Algorithm 1.
    """

    on_cpu = False  # the optimizer trains the scales, on the model's device
    learned = "log_scale"

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        """Return the weights of IMTL-G for the scaled gradients, times the scales."""
        # Scaling does not change cosines; the sum is over the weights of the scaled gradients.
        scale = np.exp(self.numbers().detach().double().cpu().numpy())
        return _of_sum_one(_equal_projections(C, norms, ridge), 1 / scale, ridge)

    def head_weights(self, losses: Tensor) -> Tensor:
        return torch.exp(self.numbers().detach())

    def own_loss(self, losses: Tensor) -> Tensor:
        s = self.numbers()
        return (torch.exp(s) * losses - s).sum()


def _equal_projections(C: Array, norms: Array, ridge: float) -> Array:
    return per_unit(with_products(C, (norms > 0).astype(float), ridge), norms)


def _of_sum_one(weights: Array, factors: Array | float, ridge: float) -> Array:
    """Divide weights by Σ weights · factors; return zeros if that is zero up to rounding."""
    terms = weights * factors
    total = terms.sum()
    return weights / total if abs(total) > ridge * np.abs(terms).sum() else np.zeros_like(weights)
