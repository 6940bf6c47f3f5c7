"""IMTL: impartial towards the tasks' losses (IMTL-L), their gradients (IMTL-G), or both.

"Towards Impartial Multi-task Learning" (Liu et al., 2021).
"""

import numpy as np
import torch
from torch import Tensor

from multitask.weighting.base import Scalarization
from multitask.weighting.gramian import Array, CosineMethod, per_unit, with_products
from multitask.weighting.task_parameters import Learned, TaskParameters


class IMTLL(Learned, Scalarization):
    """Σ exp(s) L − s, with a log-scale s for each task, trained by the optimizer (Algorithm 1).

    Args:
        tasks: The tasks' names.
    """

    learned = "log_scale"
    log_scale: TaskParameters

    @property
    def linear(self) -> bool:
        """The weights are exp(s), whatever the losses are."""
        return True

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``."""
        s = self.log_scale()
        return (torch.exp(s) * losses - s).sum()


class IMTLG(CosineMethod):
    """The combination, with weights that sum to one, whose projections on all gradients are equal (Equation 6).

    Where gradients depend linearly the projections are as nearly equal as can be. It is zero where equal projections
    are impossible, or take weights whose sum is zero.
    """

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        """Return the weights, of sum one."""
        return _of_sum_one(_equal_projections(C, norms, ridge), 1.0, ridge)


class IMTL(Learned, CosineMethod):
    """Losses scaled as in IMTL-L, their gradients in the trunk combined as in IMTL-G.

    The scaled losses are exp(s) L − s. The heads and s are trained by their sum; the trunk by the
    combination of their gradients that has the same projection on each of them (Algorithm 1).

    Args:
        tasks: The tasks' names.
    """

    learned = "log_scale"
    log_scale: TaskParameters

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        """Return the gradient balance's weights times the scales."""
        # Scaled gradients have the same cosines: of them the weights are divided by the scales.
        scale = np.exp(self.log_scale().detach().double().cpu().numpy())
        return _of_sum_one(_equal_projections(C, norms, ridge), 1 / scale, ridge)

    def head_weights(self, losses: Tensor) -> Tensor:
        """Return the scales."""
        return torch.exp(self.log_scale().detach())

    def own_loss(self, losses: Tensor) -> Tensor:
        """Return Σ exp(s) L − s."""
        s = self.log_scale()
        return (torch.exp(s) * losses - s).sum()


def _equal_projections(C: Array, norms: Array, ridge: float) -> Array:
    return per_unit(with_products(C, (norms > 0).astype(float), ridge), norms)


def _of_sum_one(weights: Array, factors: Array | float, ridge: float) -> Array:
    """Return the weights divided by the sum of weights times factors; zeros where that is zero up to rounding."""
    terms = weights * factors
    total = terms.sum()
    return weights / total if abs(total) > ridge * np.abs(terms).sum() else np.zeros_like(weights)
