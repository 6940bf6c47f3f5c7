from typing import ClassVar

import numpy as np
from torch import Tensor

from multitask.weighting.base import Layout
from multitask.weighting.gramian import Array, CosineMethod, per_unit, with_products


class ConFIG(CosineMethod):
    """The direction whose cosines with the gradients are proportional to the preferences.

    Its length is the sum of the gradients' projections on it. It is computed from the Gramian, by pinv(U) p =
    Uᵀ pinv(U Uᵀ) p for the unit gradients U and the preferences p (``pref_vector``, ``[m]``; equal by default).

    "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks" (Liu, Chu & Thuerey, 2024), Equation 2.
    """

    per_task: ClassVar[dict[str, Layout]] = {"pref_vector": "vector"}

    def __init__(self, pref_vector: Tensor | None = None) -> None:
        super().__init__()
        self.pref_vector = pref_vector

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        p = np.ones_like(norms) if self.pref_vector is None else self.pref_vector.double().cpu().numpy()
        beta = with_products(C, np.where(norms > 0, p, 0.0), ridge)
        products = C @ beta
        size = np.sqrt(max(float(beta @ products), 0.0))
        if size <= ridge * np.abs(beta).sum():
            return np.zeros_like(norms)
        return per_unit(float(norms @ products) / size * beta / size, norms)
