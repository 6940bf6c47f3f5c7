"""UPGrad with the exact projector, without intermediate tensors."""

from torch import Tensor
from torchjd.aggregation import UPGradWeighting
from torchjd.linalg import DualConeProjector, PSDMatrix

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.projection import ExactProjector
from multitask.weighting.torchjds import GramianMethod


class UPGrad(UPGradWeighting):
    """torchjd's UPGrad without its small tensors, which would take most of the time for a few tasks.

    "Jacobian Descent For Multi-Objective Optimization" (Quinton and Rey, 2024).

    Args:
        pref_vector: The preferences, shape ``[m]``; 1/m each by default.
        projector: The projector; by default the exact one.
    """

    def __init__(self, pref_vector: Tensor | None = None, projector: DualConeProjector | None = None) -> None:
        super().__init__(pref_vector, ExactProjector() if projector is None else projector)

    def forward(self, gramian: PSDMatrix, /) -> Tensor:
        """Return the weights of the tasks, shape ``[m]``."""
        m, preferences = len(gramian), self.pref_vector
        if not isinstance(self.projector, ExactProjector) or (
            preferences is not None and preferences.shape != (m,)
        ):
            return super().forward(gramian)
        return self.projector.project_tasks(
            [1.0 / m] * m if preferences is None else preferences.tolist(), gramian
        )


class UPGradMethod(GramianMethod):
    """UPGrad as a combiner; its projector checks and normalizes the Gramian itself."""

    def __init__(self, method: UPGrad) -> None:
        super().__init__(method)
        self._exact = isinstance(method.projector, ExactProjector)

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        if not self._exact:
            return super().weigh(losses, gradients)
        assert isinstance(self.method, UPGrad)
        return self.method.forward(gradients.gramian())  # type: ignore[arg-type]
