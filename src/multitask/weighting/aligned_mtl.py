from typing import ClassVar, Literal

import numpy as np
from scipy.linalg.lapack import dgejsv
from torch import Tensor

from multitask.weighting.base import Layout
from multitask.weighting.gramian import Array, CosineMethod, factored

ScaleMode = Literal["min", "median", "rmse"]


class AlignedMTL(CosineMethod):
    """The preference-weighted sum of the aligned gradients σ U Vᵀ, for gradients J = U Σ Vᵀ.

    If the gradients are linearly dependent, the weights are those with the smallest Σ (w ‖g‖)².

    "Independent Component Alignment for Multi-Task Learning" (Senushkin et al., 2023), Algorithm 1.

    Args:
        pref_vector: The preferences, shape ``[m]``; 1/k each by default.
        scale_mode: σ as a function of the nonzero singular values: the smallest (``min``), the lower median
            (``median``), or the root mean square (``rmse``).
    """

    per_task: ClassVar[dict[str, Layout]] = {"pref_vector": "vector"}

    def __init__(self, pref_vector: Tensor | None = None, scale_mode: ScaleMode = "min") -> None:
        super().__init__()
        if scale_mode not in ("min", "median", "rmse"):
            raise ValueError(f"weighting.scale_mode={scale_mode} is unknown; choose min, median or rmse.")
        self.pref_vector = pref_vector
        self.scale_mode = scale_mode

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        k = len(C)
        preferences = (
            np.full(k, 1 / k) if self.pref_vector is None else self.pref_vector.double().cpu().numpy()
        )
        moving = norms > 0
        if not moving.any():
            return preferences
        values, V = factored(C[np.ix_(moving, moving)], ridge)
        # The gradients in orthonormal coordinates of their span.
        coordinates = norms[moving, None] * V * np.sqrt(values)
        sizes, U, W = _singular(coordinates)
        weights = np.zeros(k)
        aligned = W @ (U.T @ preferences[moving])
        weights[moving] = _size(sizes, self.scale_mode) * (V / np.sqrt(values) @ aligned) / norms[moving]
        return weights


def _size(sizes: Array, mode: ScaleMode) -> float:
    match mode:
        case "min":
            return float(sizes.min())
        case "median":
            return float(np.sort(sizes)[(len(sizes) - 1) // 2])
    return float(np.sqrt((sizes**2).mean()))


def _singular(matrix: Array) -> tuple[Array, Array, Array]:
    """Return singular values ``[r]`` and vectors ``[k, r]``, ``[r, r]``."""
    # Jacobi's method is accurate even if the norms of the rows differ greatly ("New Fast and Accurate Jacobi SVD
    # Algorithm", Drmač & Veselić, 2008).
    sizes, U, W, work, _, failed = dgejsv(matrix, joba=2, jobu=0, jobv=0, jobp=0)
    if failed:
        raise ValueError(
            f"weighting=aligned_mtl: the singular values of the gradients did not converge ({failed})."
        )
    return sizes * (work[0] / work[1]), U, W
