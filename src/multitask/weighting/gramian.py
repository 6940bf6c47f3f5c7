"""Steps that several methods take with a Gramian before they solve anything."""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from multitask.gradients.rows import are_finite
from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import WeightedMethod

Array = np.ndarray


class CosineMethod(WeightedMethod):
    """A method that works with cosines and norms of the gradients, in float64 whatever the Gramian's dtype.

    The Gramian itself spans the square of what the norms span: in float32 its smallest eigenvalues drown as soon
    as norms differ by a factor of some thousand. Its cosines are as accurate as ever.
    """

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weight of each row, shape ``[k]``, found by :meth:`solve`."""
        gramian = checked(gradients)
        return like(gramian, self.solve(*cosines(gramian), rounding(gramian), losses))

    @abstractmethod
    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        """Return the weight of each row, shape ``[k]``.

        Args:
            C: Cosines of the rows, shape ``[k, k]``, with zeros for a row of zeros.
            norms: Norms of the rows, shape ``[k]``.
            ridge: How far from positive semi-definite rounding can leave ``C``.
            losses: Detached mean loss of each row, shape ``[k]``.
        """


def checked(gradients: TaskGradients) -> Tensor:
    """Return the Gramian, shape ``[k, k]``.

    Raises:
        FloatingPointError: If it has an entry that is NaN or infinite.
    """
    gramian = gradients.gramian()
    if not all(are_finite([gramian])):
        raise not_finite()
    return gramian


def not_finite() -> FloatingPointError:
    """Return the error of a Gramian that has an entry which is NaN or infinite."""
    return FloatingPointError(
        "The Gramian of the task gradients is not finite: a gradient is NaN, infinite or too large to "
        "square; lower optimizer.lr, or train with trainer.precision=32-true."
    )


def over_trace(gramian: Tensor) -> Tensor:
    """Return the Gramian divided by its trace, for what must not depend on the scale of the losses.

    A Gramian that is zero stays so.
    """
    trace = gramian.trace()
    return torch.where(trace > 0, gramian / trace, gramian)


def cosines(gramian: Tensor) -> tuple[Array, Array]:
    """Return cosines ``[k, k]`` and norms ``[k]`` of the rows, in float64 on the CPU.

    Working with cosines, a method solves as well for losses of 1e-8 beside 1e8 as for equal ones. A
    row of zeros has cosine zero with every row, itself included.
    """
    G = gramian.detach().double().cpu().numpy()
    norms = np.sqrt(np.clip(np.diagonal(G), 0.0, None))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    C = G * inverse[:, None] * inverse
    C = np.clip((C + C.T) / 2, -1.0, 1.0)
    np.fill_diagonal(C, (norms > 0).astype(float))
    return C, norms


def per_unit(weights: Array, norms: Array) -> Array:
    """Return the weights of rows, given those of the rows divided by their norms; zero for a row of zeros."""
    return np.divide(weights, norms, out=np.zeros_like(norms), where=norms > 0)


def factored(C: Array, ridge: float) -> tuple[Array, Array]:
    """Return positive ``values`` ``[r]`` and orthonormal ``V`` ``[k, r]`` with ``C = V diag(values) Vᵀ``.

    That holds up to rounding. r is the number of linearly independent rows, whatever their norms.
    """
    values, V = np.linalg.eigh(C)
    kept = values > ridge * values[-1]
    return values[kept], V[:, kept]


def with_products(C: Array, wanted: Array, ridge: float) -> Array:
    """Return the shortest β of those for which ``C β`` is next to ``wanted``, shape ``[k]``.

    It is zero where ``wanted`` is orthogonal to all products that there are.
    """
    values, V = factored(C, ridge)
    parts = V.T @ wanted
    if np.linalg.norm(parts) <= ridge * np.linalg.norm(wanted):
        return np.zeros_like(wanted)
    return V @ (parts / values)


def rounding(gramian: Tensor) -> float:
    """Return how far from positive semi-definite rounding can leave the cosines of a Gramian."""
    return 4.0 * len(gramian) * torch.finfo(gramian.dtype).eps


def like(gramian: Tensor, weights: Array) -> Tensor:
    """Return weights as a tensor of the Gramian's kind."""
    return torch.as_tensor(weights, dtype=gramian.dtype, device=gramian.device)
