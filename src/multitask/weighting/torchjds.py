"""Combiners for torchjd's scalarizers, weightings and aggregators."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchjd import Stateful, aggregation
from torchjd.aggregation import Aggregator, TrimmedMean, Weighting
from torchjd.scalarization import DWA, Constant, Mean, Random, Scalarizer, Sum

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization, WeightedMethod
from multitask.weighting.gramian import checked, over_trace
from multitask.weighting.projection import ExactProjector
from multitask.weighting.state import memory, move_plain_tensors, remember

_LINEAR = (Constant, Mean, Sum, Random)
# These draw no random numbers, so the generators need no seed.
_DRAW_NOTHING = (Constant, Mean, Sum, aggregation.UPGradWeighting, aggregation.MGDAWeighting)

# These are scale-invariant except for absolute thresholds, so their Gramian is divided by its trace.
_SCALE_FREE = (
    aggregation.AlignedMTLWeighting,
    aggregation.CAGradWeighting,
    aggregation.DualProjWeighting,
    aggregation.IMTLGWeighting,
    aggregation.KrumWeighting,
    aggregation.MGDAWeighting,
    aggregation.PCGradWeighting,
    aggregation.UPGradWeighting,
)


class OfTorchjd(Combiner):
    """Wraps a torchjd object as ``method``, with all of its state in the checkpoint."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method
        self.draws = not isinstance(method, _DRAW_NOTHING)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state that ``state_dict`` does not include."""
        return memory(self.method)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` does not include."""
        remember(self.method, state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        move_plain_tensors(self.method, self.moved(fn))
        return self


class TorchjdScalarization(OfTorchjd, Scalarization):
    """A torchjd scalarizer."""

    method: Scalarizer

    def __init__(self, method: Scalarizer) -> None:
        super().__init__(method)
        self.linear = isinstance(method, _LINEAR)
        self.fixed = not isinstance(method, Stateful | Random)

    def forward(self, losses: Tensor) -> Tensor:
        if not isinstance(self.method, Stateful):
            return self.method(losses)
        kept = memory(self.method)
        scalar = self.method(losses)
        remember(self.method, kept)
        return scalar

    def observe(self, losses: Tensor) -> None:
        """Call a stateful scalarizer once per step, so that it stores the losses."""
        if isinstance(self.method, Stateful):
            self.method(losses)

    def on_epoch_end(self) -> None:
        if isinstance(self.method, DWA):
            self.method.step()


class GramianMethod(OfTorchjd, WeightedMethod):
    """A torchjd weighting of the Gramian."""

    on_cpu = True
    method: Weighting

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        gramian = gradients.gramian()
        gramian = gramian.to(torch.promote_types(gramian.dtype, torch.float32))  # NumPy has no bfloat16
        # An exact projector checks for NaN and divides by the trace itself.
        if not isinstance(getattr(self.method, "projector", None), ExactProjector):
            checked(gramian)
            if _is_scale_free(self.method):
                gramian = over_trace(gramian)
        return self.method(gramian)


class MatrixMethod(OfTorchjd, WeightedMethod):
    """A torchjd weighting of the Jacobian."""

    method: Weighting
    reads_jacobian = True

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        checked(gradients.gramian())
        return self.method(gradients.jacobian())


class AggregatorMethod(OfTorchjd, JacobianMethod):
    """A torchjd aggregator that is not a weighted sum of the rows."""

    method: Aggregator
    reads_jacobian = True

    def combine(self, losses: Tensor, gradients: TaskGradients) -> None:
        if isinstance(self.method, TrimmedMean):
            gradients = gradients.local  # it acts on each column separately
        vector = self.method(gradients.jacobian())
        finite = gradients.total((~vector.isfinite()).sum()) == 0
        if not finite:
            raise FloatingPointError(
                f"weighting: {type(self.method).__name__} of the task gradients is not finite: one is NaN or "
                "infinite; lower optimizer.lr, or train with trainer.precision=32-true."
            )
        gradients.assign(vector)


def _is_scale_free(method: Weighting) -> bool:
    if isinstance(method, aggregation.CRMOGMWeighting):
        return _is_scale_free(method.weighting)
    return isinstance(method, _SCALE_FREE)
