"""ConFIG: the direction with equal cosines."""

from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import WeightedMethod
from multitask.weighting.gramian import checked, cosines, like, rounding
from multitask.weighting.present import Kind


class ConFIG(WeightedMethod):
    """The direction whose cosines with the gradients are as the preferences.

    It is as long as the gradients' projections on it together.

    Found from the Gramian: pinv(U) p = Uᵀ pinv(U Uᵀ) p for the unit gradients U, so that neither the
    Jacobian nor its pseudoinverse is needed.

    "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks" (Liu, Chu & Thuerey,
    2024), Equation 2.

    Args:
        pref_vector: The preferences p, shape ``[m]``; equal by default.
    """

    per_task: ClassVar[dict[str, Kind]] = {"pref_vector": "vector"}

    def __init__(self, pref_vector: Tensor | None = None) -> None:
        super().__init__()
        self.pref_vector = pref_vector

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weights of the rows in that direction."""
        gramian = checked(gradients)
        C, norms = (torch.as_tensor(a) for a in cosines(gramian))
        wanted = torch.ones_like(norms) if self.pref_vector is None else self.pref_vector.to(norms)
        wanted = torch.where(norms > 0, wanted, 0.0)
        beta = torch.linalg.pinv(C, hermitian=True, rtol=rounding(gramian)) @ wanted
        products = C @ beta
        size = (beta @ products).clamp(min=0).sqrt()
        if size <= rounding(gramian) * beta.abs().sum():
            return torch.zeros_like(gramian[0])
        length = (norms * products).sum() / size
        weights = torch.where(norms > 0, length * beta / size / norms, 0.0)
        return like(gramian, weights.numpy())
