"""The output of a trunk that has losses of its own."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class WithLosses(NamedTuple):
    """Features, and losses by name: a divergence of a variational layer, the balance of a mixture of experts.

    None of the losses is trained unless a :class:`multitask.task.terms.Term` names it.
    """

    features: Tensor | Mapping[str, Tensor]
    """As of any trunk: one tensor for all tasks, or a mapping with one per task."""
    losses: Mapping[str, Tensor | tuple[Tensor, float | Tensor]]
    """The mean over the batch, a scalar; one value per example, ``[batch]``; or a mean and what it is over."""
