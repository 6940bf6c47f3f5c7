"""The combined gradient made as long as the mean gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import JacobianMethod
from multitask.weighting.wrapper import Wrapper


class Rescaled(Wrapper[JacobianMethod]):
    """Another method's direction with the norm of the mean of the rows.

    Methods differ in the length of what they give; with equal lengths, one learning rate serves all. A
    combined gradient that is zero stays so.

    Args:
        method: The other method.
    """

    def combine(self, losses: Tensor, gradients: TaskGradients) -> Tensor | None:
        """Add the rescaled combined gradient."""
        kept = _Kept(gradients)
        weights = self.method.combine(losses, kept)
        kept.write()
        return None if weights is None else weights * kept.factor.to(weights)


class _Kept(TaskGradients):
    """Shows gradients to a method and keeps what it writes."""

    def __init__(self, gradients: TaskGradients) -> None:
        self._gradients = gradients
        self._gramian: Tensor | None = None
        self._weights: Tensor | None = None
        self._vector: Tensor | None = None
        self.factor = torch.ones(())

    @property
    def layout(self) -> Sequence[tuple[str, int]]:  # type: ignore[override]
        return self._gradients.layout

    @property
    def distances(self) -> Sequence[int | None]:  # type: ignore[override]
        return self._gradients.distances

    def gramian(self) -> Tensor:
        if self._gramian is None:
            self._gramian = self._gradients.gramian()
        return self._gramian

    def combine(self, weights: Tensor) -> None:
        self._weights = weights

    def jacobian(self) -> Tensor:
        return self._gradients.jacobian()

    def assign(self, vector: Tensor) -> None:
        self._vector = vector

    def write(self) -> None:
        """Write what was kept, rescaled."""
        G = self.gramian()
        wanted = G.sum().clamp(min=0).sqrt() / len(G)
        if self._weights is not None:
            w = self._weights.to(G)
            length = (w @ G @ w).clamp(min=0).sqrt()
            # What the Gramian's rounding leaves of a combination that cancels.
            noise = torch.finfo(G.dtype).eps ** 0.5 * (w.abs() @ G.diagonal().clamp(min=0).sqrt())
            self.factor = torch.where(length > noise, wanted / length, 1.0)
            self._gradients.combine(self._weights * self.factor.to(self._weights))
        elif self._vector is not None:
            length = self._vector.norm()
            self.factor = torch.where(length > 0, wanted.to(length) / length, 1.0)
            self._gradients.assign(self._vector * self.factor.to(self._vector))
