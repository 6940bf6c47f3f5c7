"""What several methods do with a Gramian before they solve anything."""

import numpy as np
import torch
from torch import Tensor

from multitask.finite import are_finite
from multitask.gradients.task_gradients import TaskGradients

Array = np.ndarray


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


def rounding(gramian: Tensor) -> float:
    """Return how far from positive semi-definite rounding can leave the cosines of a Gramian."""
    return 4.0 * len(gramian) * torch.finfo(gramian.dtype).eps


def like(gramian: Tensor, weights: Array) -> Tensor:
    """Return weights as a tensor of the Gramian's kind."""
    return torch.as_tensor(weights, dtype=gramian.dtype, device=gramian.device)
