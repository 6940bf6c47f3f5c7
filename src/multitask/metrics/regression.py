"""Numerically accurate R², and relative errors."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from multitask.losses.pixels import same_shape
from multitask.metrics.trials import varies


class R2(Metric):
    """1 − Σ (target − prediction)² / Σ (target − mean)², averaged over columns.

    ``prediction`` and ``target``: ``[batch]`` or ``[batch, columns]``. The result is invariant to shifting and scaling
    both, unlike that of ``torchmetrics.R2Score``, which subtracts large sums and treats sums of squares below 1e-4 as
    zero. Each batch contributes the moments of its targets about their mean, which are merged at the end (Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979). Columns with constant targets are excluded;
    NaN if all are.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    moments: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("moments", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        same_shape("R2", prediction, target)
        rows = target.detach().double().reshape(len(target), -1)
        residuals = rows - prediction.detach().double().reshape(rows.shape)
        mean = rows.mean(0)
        count = torch.full_like(mean, len(rows))
        squares = (rows - mean).square().sum(0), residuals.square().sum(0)
        assert isinstance(self.moments, list)
        self.moments.append(torch.stack([count, mean, *squares, rows.amin(0), rows.amax(0)])[None])

    def compute(self) -> Tensor:
        """Return R², a scalar in (−∞, 1]."""
        count, mean, squares, residuals, lowest, highest = dim_zero_cat(self.moments).unbind(1)
        origin = mean[0]
        whole = origin + (count * (mean - origin)).sum(0) / count.sum(0)
        total = squares.sum(0) + (count * (mean - whole).square()).sum(0)
        # Not by the squares, which rounding of the mean makes positive even for constant columns.
        return (1 - residuals.sum(0) / total)[varies(lowest.amin(0), highest.amax(0))].mean()


class RelativeL2(Metric):
    """‖prediction − target‖ / ‖target‖ over all values, the usual error of approximate solutions of equations.

    ``prediction`` and ``target`` have the same shape. NaN if all targets are zero.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    errors: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("errors", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        same_shape("RelativeL2", prediction, target)
        reference = target.detach().double()
        self.errors += (prediction.detach().double() - reference).square().sum()
        self.squares += reference.square().sum()

    def compute(self) -> Tensor:
        """Return the relative error, a scalar."""
        return torch.where(self.squares > 0, (self.errors / self.squares).sqrt(), torch.nan)
