"""Operations on Gramians that several methods share."""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from multitask.gradients.rows import are_finite
from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import WeightedMethod

Array = np.ndarray


class CosineMethod(WeightedMethod):
    """A method that works on the cosines and norms of the gradients, in float64 whatever the Gramian's dtype.

    In float32, the smallest eigenvalues of a Gramian are lost to rounding once norms differ by a factor of a few
    thousand; its cosines stay accurate.
    """

    on_cpu = True

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weight of each row from :meth:`solve`, shape ``[k]``."""
        return self.of_gramian(checked(gradients.gramian()), losses)

    def of_gramian(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weight of each row, given the Gramian, ``[k, k]``."""
        ridge = 4.0 * len(gramian) * torch.finfo(gramian.dtype).eps
        return like(gramian, self.solve(*cosines(gramian), ridge, losses))

    @abstractmethod
    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        """Return the weight of each row, shape ``[k]``.

        Args:
            C: Cosines of the rows, shape ``[k, k]``, zero for rows of zeros.
            norms: Norms of the rows, shape ``[k]``.
            ridge: Bound on how far rounding can make ``C`` indefinite.
            losses: Detached mean loss of each row, shape ``[k]``.
        """


def checked(values: Tensor) -> Tensor:
    """Return the values, computed from the gradients; raise ``FloatingPointError`` if one is NaN or infinite."""
    if not all(are_finite([values])):
        raise not_finite()
    return values


def not_finite() -> FloatingPointError:
    """Return the error for a Gramian with an entry that is NaN or infinite."""
    return FloatingPointError(
        "The Gramian of the task gradients is not finite: a gradient is NaN, infinite or too large to "
        "square; lower optimizer.lr, or train with trainer.precision=32-true."
    )


def over_trace(gramian: Tensor) -> Tensor:
    """Return the Gramian divided by its trace, or unchanged if it is zero, for methods independent of scale."""
    trace = gramian.trace()
    return torch.where(trace > 0, gramian / trace, gramian)


def cosines(gramian: Tensor) -> tuple[Array, Array]:
    """Return cosines ``[k, k]`` and norms ``[k]`` of the rows, in float64 on the CPU.

    A row of zeros has cosine zero with every row, including itself.
    """
    G = gramian.detach().double().cpu().numpy()
    norms = np.sqrt(np.clip(np.diagonal(G), 0.0, None))
    inverse = per_unit(1.0, norms)
    C = G * inverse[:, None] * inverse
    C = np.clip((C + C.T) / 2, -1.0, 1.0)
    np.fill_diagonal(C, (norms > 0).astype(float))
    return C, norms


def per_unit(weights: Array | float, norms: Array) -> Array:
    """Convert weights of the normalized rows to weights of the rows; zero for rows of zeros."""
    return np.divide(weights, norms, out=np.zeros_like(norms), where=norms > 0)


def factored(C: Array, ridge: float) -> tuple[Array, Array]:
    """Return positive ``values`` ``[r]`` and orthonormal ``V`` ``[k, r]`` with ``C ≈ V diag(values) Vᵀ``.

    It holds up to rounding, and r is the number of linearly independent rows.
    """
    values, V = np.linalg.eigh(C)
    kept = values > ridge * values[-1]
    return values[kept], V[:, kept]


def with_products(C: Array, products: Array, ridge: float) -> Array:
    """Return the least-squares solution β of ``C β = products`` with the smallest norm, shape ``[k]``.

    It is zero if ``products`` is orthogonal to the range of ``C`` up to rounding.
    """
    values, V = factored(C, ridge)
    parts = V.T @ products
    if np.linalg.norm(parts) <= ridge * np.linalg.norm(products):
        return np.zeros_like(products)
    return V @ (parts / values)


def like(tensor: Tensor, values: Array) -> Tensor:
    """Return values as a tensor with another's dtype and device."""
    return torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device)
