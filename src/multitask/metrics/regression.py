"""R² of targets of any unit, however far from zero, and relative errors."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from multitask.metrics.pooling import same_shape
from multitask.metrics.trials import varies


class R2(Metric):
    """1 − Σ (target − prediction)² / Σ (target − mean)², averaged over columns.

    ``prediction`` and ``target``: ``[batch]`` or ``[batch, columns]``. Moving both by a constant or giving them in
    another unit changes nothing, unlike ``torchmetrics.R2Score``, which subtracts large sums from one another and
    takes sums of squares under 1e-4 for zero: each batch leaves the moments of its targets about their own mean,
    which are merged at the end (Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979).
    A column whose targets are all the same has no value and is left out; NaN where no column has one.
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
        found = [count, mean, *squares, rows.amin(0), rows.amax(0)]
        assert isinstance(self.moments, list)
        self.moments.append(torch.stack(found)[None])

    def compute(self) -> Tensor:
        """Return R², a scalar in (−∞, 1]."""
        count, mean, squares, residuals, lowest, highest = dim_zero_cat(self.moments).unbind(1)
        origin = mean[0]
        whole = origin + (count * (mean - origin)).sum(0) / count.sum(0)
        total = squares.sum(0) + (count * (mean - whole).square()).sum(0)
        # Not by the squares: rounding of the mean leaves some of a column that is the same everywhere.
        return (1 - residuals.sum(0) / total)[varies(lowest.amin(0), highest.amax(0))].mean()


class RelativeL2(Metric):
    """‖prediction − target‖ / ‖target‖ over all values: the error by which solutions of equations are compared.

    ``prediction`` and ``target`` have one shape. NaN where all targets are zero.
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
        wanted = target.detach().double()
        self.errors += (prediction.detach().double() - wanted).square().sum()
        self.squares += wanted.square().sum()

    def compute(self) -> Tensor:
        """Return the relative error, a scalar."""
        return torch.where(self.squares > 0, (self.errors / self.squares).sqrt(), torch.nan)
