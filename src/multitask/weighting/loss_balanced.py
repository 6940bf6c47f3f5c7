"""Each loss divided by its own present value."""

from torch import Tensor

from multitask.weighting.base import Scalarization
from multitask.weighting.positive import positive


class LossBalanced(Scalarization):
    """Mean of L / L̄, where L̄ is the value of L, not differentiated: each task contributes a loss of one.

    The direction is that of Σ log L (``si``), whatever the number of tasks with the size of one task's.
    """

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``, all above zero."""
        return (losses / positive(losses.detach(), "loss_balanced")).mean()
