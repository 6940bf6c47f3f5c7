"""Task gradients that compute their Gramian once, for whoever asks."""

from collections.abc import Callable, Sequence

from torch import Tensor

from multitask.autodiff.gradients import TaskGradients


class Observed(TaskGradients):
    """Remembers the Gramian, so that telemetry and checks cost nothing beside the combiner.

    Args:
        gradients: What is observed.
        layout: Returns the layout; most combiners never ask for it.
    """

    def __init__(self, gradients: TaskGradients, layout: Callable[[], Sequence[tuple[str, int]]]) -> None:
        self._gradients = gradients
        self._gramian: Tensor | None = None
        self._layout = layout

    @property
    def layout(self) -> Sequence[tuple[str, int]]:  # type: ignore[override]
        """Name and size of each shared parameter in the order of the Jacobian's columns."""
        return self._layout()

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``, computed at the first call."""
        if self._gramian is None:
            self._gramian = self._gradients.gramian()
        return self._gramian

    def combine(self, weights: Tensor) -> None:
        """Add ``weightsᵀ J`` to the gradients of the shared parameters."""
        self._gradients.combine(weights)

    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``."""
        return self._gradients.jacobian()

    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, to the gradients of the shared parameters."""
        self._gradients.assign(vector)
