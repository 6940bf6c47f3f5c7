"""torchjd's scalarizers, weightings and aggregators as combiners, one class for each kind."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn
from torchjd import Stateful, aggregation
from torchjd.aggregation import Aggregator, TrimmedMean, Weighting
from torchjd.scalarization import DWA, Constant, Mean, Random, Scalarizer, Sum

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization, WeightedMethod
from multitask.weighting.gramian import checked, over_trace
from multitask.weighting.projection import ExactProjector
from multitask.weighting.state import materialize_buffers, memory, move_plain_tensors, remember

_LINEAR = (Constant, Mean, Sum, Random)
# Known to draw no random numbers: the generators need no seed.
_DRAW_NOTHING = (Constant, Mean, Sum, aggregation.UPGradWeighting, aggregation.MGDAWeighting)

# Weights of these are the same whatever the losses are multiplied by, were it not for absolute
# thresholds: their Gramian is divided by its trace first.
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
    """Keeps a torchjd object as ``method``, with its whole memory in the checkpoint."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method
        self.draws = not isinstance(method, _DRAW_NOTHING)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what ``state_dict`` leaves out."""
        return memory(self.method)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` left out."""
        remember(self.method, state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        move_plain_tensors(self.method, fn)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        materialize_buffers(self.method, state_dict, f"{prefix}method.")
        super()._load_from_state_dict(state_dict, prefix, *args)


class TorchjdScalarization(OfTorchjd, Scalarization):
    """A torchjd scalarizer, with the call that DWA expects from a training loop."""

    method: Scalarizer

    @property
    def linear(self) -> bool:
        """Whether the weights are the same whatever the losses are."""
        return isinstance(self.method, _LINEAR)

    @property
    def fixed(self) -> bool:
        """Whether the scalar is the same function of the losses throughout."""
        return not isinstance(self.method, Stateful | Random)

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` is ``[k]``."""
        if not isinstance(self.method, Stateful):
            return self.method(losses)
        kept = memory(self.method)
        scalar = self.method(losses)
        remember(self.method, kept)
        return scalar

    def observe(self, losses: Tensor) -> None:
        """Let what remembers losses whenever it is called remember those of a step once."""
        if isinstance(self.method, Stateful):
            self.method(losses)

    def on_epoch_end(self) -> None:
        """Close DWA's epoch (End-to-End Multi-Task Learning with Attention, 2019)."""
        if isinstance(self.method, DWA):
            self.method.step()


class GramianMethod(OfTorchjd, WeightedMethod):
    """A torchjd weighting that needs the Gramian only."""

    method: Weighting

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Weigh the rows by their Gramian."""
        return self.method(self.gramian(gradients))

    def gramian(self, gradients: TaskGradients) -> Tensor:
        """Return the Gramian as the method wants it, shape ``[k, k]``."""
        if isinstance(getattr(self.method, "projector", None), ExactProjector):
            return gradients.gramian()  # it looks for NaN and divides by the trace itself
        gramian = checked(gradients)
        return over_trace(gramian) if _is_scale_free(self.method) else gramian


class MatrixMethod(OfTorchjd, WeightedMethod):
    """A torchjd weighting that needs the Jacobian itself to find its weights."""

    method: Weighting

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Weigh the rows by their Jacobian."""
        checked(gradients)
        return self.method(gradients.jacobian())


class AggregatorMethod(OfTorchjd, JacobianMethod):
    """A torchjd aggregator that is no weighted sum of the rows."""

    method: Aggregator

    def combine(self, losses: Tensor, gradients: TaskGradients) -> None:
        """Put the aggregation of the Jacobian in place of a weighted sum."""
        if isinstance(self.method, TrimmedMean):
            gradients = gradients.local  # it treats each column by itself
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
