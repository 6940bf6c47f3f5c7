"""Conversion of torchjd scalarizers, weightings and aggregators to combiners."""

from typing import get_args, get_origin

from torch import Tensor, nn
from torchjd import aggregation
from torchjd.aggregation import Aggregator, GramianWeightedAggregator, WeightedAggregator, Weighting
from torchjd.linalg import Matrix
from torchjd.scalarization import FAMO, IMTLL, UW, Scalarizer

from multitask.weighting import aligned_mtl, bargaining, cagrad, famo, imtl, pcgrad, scalarizations, upgrad
from multitask.weighting.base import Combiner, Scalarization
from multitask.weighting.torchjds import AggregatorMethod, GramianMethod, MatrixMethod, TorchjdScalarization
from multitask.weighting.wrapper import Every

# These take a Jacobian but use only its number of rows and its dtype.
_COUNT_ROWS = (
    aggregation.ConstantWeighting,
    aggregation.MeanWeighting,
    aggregation.RandomWeighting,
    aggregation.SumWeighting,
)


def adapt(method: object) -> Combiner:
    """Return the combiner for a torchjd object; combiners are returned unchanged.

    If this package has its own implementation, that is used: it allows absent tasks (FAMO, IMTL-L, UW), handles
    gradients whose norms differ by any factor (Aligned-MTL, IMTL-G, PCGrad), or solves exactly (Nash-MTL, FairGrad,
    CAGrad).

    Raises:
        TypeError: If the object is neither a combiner nor a torchjd scalarizer, weighting or aggregator.
        ValueError: If it is a torchjd weighting that needs two batches at once.
    """
    match method:
        case Combiner():
            return method
        case aggregation.MoDoWeighting() | aggregation.SDMGradWeighting():
            name = type(method).__name__
            raise ValueError(
                f"weighting._target_ is torchjd's {name}, which needs the Jacobians of two batches; set "
                f"weighting={name.removesuffix('Weighting').lower()}, which takes them from the batch's halves."
            )
        case UW() | IMTLL() | FAMO():
            return _trained(method)
        case Scalarizer():
            return TorchjdScalarization(method)
        case upgrad.UPGrad():
            return upgrad.UPGradMethod(method)
        case GramianWeightedAggregator():
            return adapt(method.gramian_weighting)
        case aggregation.NashMTL():
            exact = bargaining.NashMTL(method.max_norm)
            steps = method.update_weights_every
            return exact if steps == 1 else Every(_names(method.n_tasks), exact, steps)
        case WeightedAggregator(weighting=Weighting() as weighting):
            return GramianMethod(weighting) if isinstance(weighting, _COUNT_ROWS) else MatrixMethod(weighting)
        case Aggregator():
            return AggregatorMethod(method)
        case aggregation.AlignedMTLWeighting():
            return aligned_mtl.AlignedMTL(method.pref_vector, method.scale_mode)
        case aggregation.IMTLGWeighting():
            return imtl.IMTLG()
        case aggregation.PCGradWeighting():
            return pcgrad.PCGrad()
        case aggregation.CAGradWeighting():
            return cagrad.CAGrad(method.c, method.norm_eps)
        case aggregation.FairGradWeighting():
            return bargaining.FairGrad(method.alpha)
        case Weighting():
            needs_jacobian = _takes_matrix(method) and not isinstance(method, _COUNT_ROWS)
            return MatrixMethod(method) if needs_jacobian else GramianMethod(method)
    raise TypeError(
        f"weighting._target_ is a {type(method).__name__}; set a torchjd scalarizer, weighting or "
        "aggregator, or a subclass of multitask.weighting.base.Combiner."
    )


def _takes_matrix(method: Weighting) -> bool:
    """Return whether a weighting takes the Jacobian, that is, its class derives from ``Weighting[Matrix]``."""
    bases = [base for cls in type(method).__mro__ for base in vars(cls).get("__orig_bases__", ())]
    return any(get_origin(base) is Weighting and Matrix in get_args(base) for base in bases)


def _trained(method: UW | IMTLL | FAMO) -> Scalarization:
    if isinstance(method, FAMO):
        return famo.FAMO(_names(len(method.min_losses)), method.min_losses, method.lr, method.weight_decay)
    learned: Tensor = method.log_var if isinstance(method, UW) else method.log_scale
    own = (scalarizations.UW if isinstance(method, UW) else imtl.IMTLL)(_names(len(learned)))
    for value, start in zip(own.parameters(), learned.tolist(), strict=True):
        nn.init.constant_(value, start)
    return own


def _names(tasks: int) -> list[str]:
    return [str(i) for i in range(tasks)]
