"""Task gradients as a combiner sees them: the present rows, unscaled, with the Gramian computed once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multitask.gradients.ownership import Layout
from multitask.gradients.task_gradients import TaskGradients


class SeenGradients(TaskGradients):
    """Shows a combiner some rows of gradients, unscaled, while ``.grad`` stays scaled for the loss scaler.

    Args:
        gradients: All rows, of losses multiplied by ``scale``.
        rows: The numbers of the rows that are shown; ``None`` for all.
        scale: The factor, a scalar tensor; ``None`` for one.
        columns: The Jacobian's columns; most combiners never ask for them.
    """

    def __init__(
        self,
        gradients: TaskGradients,
        rows: Tensor | None,
        scale: Tensor | None,
        columns: Layout,
    ) -> None:
        self._gradients = gradients
        self._rows = rows
        self._scale = scale
        self._columns = columns
        self._gramian: Tensor | None = None
        self._k = 0

    @property
    def layout(self) -> Sequence[tuple[str, int]]:  # type: ignore[override]
        """Name and size of each shared parameter in the order of the Jacobian's columns."""
        return self._columns.parameters()

    @property
    def distances(self) -> Sequence[int | None]:  # type: ignore[override]
        """How many operations lie between the losses and each parameter of the layout."""
        return self._columns.distances()

    def gramian(self) -> Tensor:
        """Return the unscaled Gramian, computed once; divided twice, as the square of the scale may overflow."""
        if self._gramian is None:
            gramian = self._gradients.gramian()
            self._k = len(gramian)
            if self._rows is not None:
                gramian = gramian[self._rows][:, self._rows]
            self._gramian = gramian if self._scale is None else gramian / self._scale / self._scale
        return self._gramian

    def combine(self, weights: Tensor) -> None:
        """Add the combination, scaled."""
        if self._rows is not None:
            self.gramian()
            weights = weights.new_zeros(self._k).index_copy_(0, self._rows.to(weights.device), weights)
        self._gradients.combine(weights)

    def jacobian(self) -> Tensor:
        """Return the unscaled Jacobian."""
        jacobian = self._gradients.jacobian()
        jacobian = jacobian if self._rows is None else jacobian[self._rows]
        return jacobian if self._scale is None else jacobian / self._scale

    def assign(self, vector: Tensor) -> None:
        """Add the vector, scaled."""
        self._gradients.assign(vector if self._scale is None else vector * self._scale)

    def poison(self) -> None:
        """Write infinities, so that the loss scaler skips the step and lowers its scale."""
        gramian = self.gramian()
        self._gradients.combine(torch.full((self._k,), torch.inf, dtype=gramian.dtype, device=gramian.device))
