"""Any torchjd scalarizer, Gramian weighting or aggregator as a combiner."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn
from torchjd import Stateful, aggregation
from torchjd.aggregation import Aggregator, GramianWeightedAggregator, WeightedAggregator, Weighting
from torchjd.aggregation._weighting_bases import _MatrixWeighting
from torchjd.scalarization import DWA, FAMO, IMTLL, UW, Constant, Mean, Random, Scalarizer, Sum

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting import famo, imtl_l, uw
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization, WeightedMethod
from multitask.weighting.gramian import checked, over_trace
from multitask.weighting.outside import Outside, calls_outside
from multitask.weighting.projection import ExactProjector
from multitask.weighting.state import materialize_buffers, memory, move_plain_tensors, remember
from multitask.weighting.tally import Tally

_LINEAR = (Constant, Mean, Sum, Random)

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
# These take a Jacobian but look only at how many rows it has, and of what type.
_COUNT_ROWS = (
    aggregation.ConstantWeighting,
    aggregation.MeanWeighting,
    aggregation.RandomWeighting,
    aggregation.SumWeighting,
)


class _Remembers(Combiner):
    """Keeps a torchjd object as ``method``, with its whole memory in the checkpoint."""

    method: nn.Module

    def reset(self) -> None:
        """Forget everything learned or remembered, as before the first step."""
        if isinstance(self.method, Stateful):
            self.method.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """Return what ``state_dict`` leaves out."""
        return memory(self.method)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` left out."""
        remember(self.method, state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        move_plain_tensors(self.method, fn)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        materialize_buffers(self.method, state_dict, f"{prefix}method.")
        super()._load_from_state_dict(state_dict, prefix, *args)


class TorchjdScalarization(_Remembers, Scalarization):
    """A torchjd scalarizer, with the call that DWA expects from a training loop."""

    def __init__(self, method: Scalarizer) -> None:
        super().__init__()
        self.method = method

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
        return self.method(losses)

    def on_epoch_end(self) -> None:
        """Close DWA's epoch (End-to-End Multi-Task Learning with Attention, 2019)."""
        if isinstance(self.method, DWA):
            self.method.step()


class GramianMethod(_Remembers, WeightedMethod):
    """A torchjd weighting that needs the Gramian only."""

    method: Weighting

    def __init__(self, method: Weighting) -> None:
        super().__init__()
        self.method = method
        self.solver = Tally(type(method).__name__) if calls_outside(method) else None

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Weigh the rows by their Gramian."""
        if isinstance(getattr(self.method, "projector", None), ExactProjector):
            gramian = gradients.gramian()  # it looks for NaN and divides by the trace itself
        else:
            gramian = checked(gradients)
            gramian = over_trace(gramian) if _is_scale_free(self.method) else gramian
        return self.method(gramian) if self.solver is None else Outside(self.method, self.solver)(gramian)


class MatrixMethod(_Remembers, WeightedMethod):
    """A torchjd weighting that needs the Jacobian itself to find its weights."""

    method: Weighting

    def __init__(self, method: Weighting) -> None:
        super().__init__()
        self.method = method
        self.solver = Tally(type(method).__name__) if calls_outside(method) else None

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Weigh the rows by their Jacobian."""
        checked(gradients)
        jacobian = gradients.jacobian()
        return self.method(jacobian) if self.solver is None else Outside(self.method, self.solver)(jacobian)


class AggregatorMethod(_Remembers, JacobianMethod):
    """A torchjd aggregator that is no weighted sum of the rows."""

    def __init__(self, method: Aggregator) -> None:
        super().__init__()
        self.method = method

    def combine(self, losses: Tensor, gradients: TaskGradients) -> None:
        """Put the aggregation of the Jacobian in place of a weighted sum."""
        vector = self.method(gradients.jacobian())
        if not vector.isfinite().all():
            raise FloatingPointError(
                f"weighting: {type(self.method).__name__} of the task gradients is not finite: one is NaN or "
                "infinite; lower optimizer.lr, or train with trainer.precision=32-true."
            )
        gradients.assign(vector)


def _is_scale_free(method: Weighting) -> bool:
    if isinstance(method, aggregation.CRMOGMWeighting):
        return _is_scale_free(method.weighting)
    return isinstance(method, _SCALE_FREE)


def _own(method: UW | IMTLL | FAMO) -> Scalarization:
    """Return this repository's class for a torchjd object, so that tasks can be absent from a step."""
    if isinstance(method, FAMO):
        return famo.FAMO(_names(method.min_losses), method.min_losses, method.lr, method.weight_decay)
    learned = method.log_var if isinstance(method, UW) else method.log_scale
    own = (uw.UW if isinstance(method, UW) else imtl_l.IMTLL)(_names(learned))
    for value, start in zip(own.parameters(), learned.tolist(), strict=True):
        nn.init.constant_(value, start)
    return own


def _names(vector: Tensor) -> list[str]:
    return [str(i) for i in range(len(vector))]


def adapt(method: object) -> Combiner:
    """Return the combiner for a torchjd object; combiners pass as they are.

    Raises:
        TypeError: If the object is neither a combiner nor a torchjd scalarizer, weighting or
            aggregator.
        ValueError: If it is one of torchjd's that wants two batches at once.
    """
    match method:
        case Combiner():
            return method
        case aggregation.MoDoWeighting() | aggregation.SDMGradWeighting():
            name = type(method).__name__
            raise ValueError(
                f"weighting._target_ made torchjd's {name}, which wants the Jacobians of two batches; take "
                f"weighting={name.removesuffix('Weighting').lower()}, which has them from the batch's halves."
            )
        case UW() | IMTLL() | FAMO():
            return _own(method)
        case Scalarizer():
            return TorchjdScalarization(method)
        case GramianWeightedAggregator():
            return GramianMethod(method.gramian_weighting)
        case WeightedAggregator():
            return adapt(method.weighting)
        case Aggregator():
            return AggregatorMethod(method)
        case Weighting() if isinstance(method, _COUNT_ROWS):
            return GramianMethod(method)
        case _MatrixWeighting():
            return MatrixMethod(method)
        case Weighting():
            return GramianMethod(method)
    raise TypeError(
        f"weighting._target_ made a {type(method).__name__}; name a torchjd scalarizer, weighting or "
        "aggregator, or a subclass of multitask.weighting.base.Combiner."
    )
