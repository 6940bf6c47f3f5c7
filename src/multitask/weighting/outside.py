"""torchjd's methods that call a solver of another package: what it leaves unsolved is counted and logged."""

import warnings

import torch
from torch import Tensor
from torchjd.aggregation import CAGradWeighting, FairGradWeighting, Weighting
from torchjd.aggregation._nash_mtl import _NashMTLWeighting

from multitask.weighting.tally import Tally

# How far the equation of a method may be from holding, relative to its sides.
_TOLERANCE = 1e-2


class Outside:
    """Calls such a method.

    Where its solver fails the trunk rests in that step; where it solves too little, its weights are
    taken. Both count as failures.

    Args:
        method: The method.
        tally: Counts.
    """

    def __init__(self, method: Weighting, tally: Tally) -> None:
        self._method = method
        self._tally = tally

    def __call__(self, matrix: Tensor) -> Tensor:
        """Return the weights of the rows, given the Jacobian or the Gramian as the method wants it."""
        method = self._method
        if isinstance(method, _NashMTLWeighting) and method.step and not hasattr(method, "prob"):
            # Its program is made at its first step, which was in the run that this one goes on from.
            method._init_optim_problem()
        try:
            with self._tally.timed(), warnings.catch_warnings():
                # cvxpy says that the program could be written to be solved faster, NumPy where it has no solution.
                warnings.simplefilter("ignore")
                weights = method(matrix)
        except Exception as error:
            return self._nothing(matrix, f"{type(error).__name__}: {error}")
        if not weights.isfinite().all():
            return self._nothing(matrix, "its weights are not finite")
        wrong = _residual(method, matrix, weights)
        if not wrong <= _TOLERANCE:
            self._tally.failed(
                f"the equation is solved to {wrong:.0e} only; its weights are taken as they are"
            )
        return weights

    def _nothing(self, matrix: Tensor, why: str) -> Tensor:
        why = " ".join(why.split())
        self._tally.failed(f"no solution ({why}); the trunk is left as it is in this step")
        return torch.zeros_like(matrix[:, 0])


def calls_outside(method: Weighting) -> bool:
    """Return whether a method calls a solver of another package that can fail."""
    return isinstance(method, CAGradWeighting | FairGradWeighting | _NashMTLWeighting)


def _residual(method: Weighting, matrix: Tensor, weights: Tensor) -> float:
    """Return how far the equation of a method is from holding, relative to its sides."""
    if isinstance(method, FairGradWeighting) and method.alpha > 0:
        w = weights.double()
        return float((w ** (1 / method.alpha) * (matrix.double() @ w) - 1).abs().max())
    if isinstance(method, _NashMTLWeighting) and (method.step - 1) % method.update_weights_every == 0:
        # Of the weights before they are shortened.
        alpha = torch.as_tensor(method.prvs_alpha, dtype=torch.float64)
        jacobian = matrix.double().cpu()
        return float((alpha * (jacobian @ (alpha @ jacobian)) - 1).abs().max())
    return 0.0
