"""torchjd's methods that call a solver of another package: what it leaves unsolved is counted and logged."""

import warnings

import torch
from torch import Tensor
from torchjd.aggregation import CAGradWeighting, FairGradWeighting

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.tally import Tally
from multitask.weighting.torchjds import GramianMethod

# How far the equation of a method may be from holding, relative to its sides.
_TOLERANCE = 1e-2


class Outside(GramianMethod):
    """Calls such a method.

    Where its solver fails the trunk rests in that step; where it solves too little, its weights are
    taken. Both count as failures.

    Args:
        method: The method.
    """

    method: CAGradWeighting | FairGradWeighting

    def __init__(self, method: CAGradWeighting | FairGradWeighting) -> None:
        super().__init__(method)
        self.solver = Tally(type(method).__name__)

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Weigh the rows by their Gramian."""
        gramian = self.gramian(gradients)
        try:
            with self.solver.timed(), warnings.catch_warnings():
                # cvxpy says that the program could be written to be solved faster, NumPy where it has no solution.
                warnings.simplefilter("ignore")
                weights = self.method(gramian)
        except Exception as error:
            return self._nothing(gramian, f"{type(error).__name__}: {error}")
        if not weights.isfinite().all():
            return self._nothing(gramian, "its weights are not finite")
        if isinstance(self.method, FairGradWeighting) and self.method.alpha > 0:
            w = weights.double()
            wrong = float((w ** (1 / self.method.alpha) * (gramian.double() @ w) - 1).abs().max())
            if not wrong <= _TOLERANCE:
                self.solver.failed(
                    f"the equation is solved to {wrong:.0e} only; its weights are taken as they are"
                )
        return weights

    def _nothing(self, gramian: Tensor, why: str) -> Tensor:
        why = " ".join(why.split())
        self.solver.failed(f"no solution ({why}); the trunk is left as it is in this step")
        return torch.zeros_like(gramian[0])
