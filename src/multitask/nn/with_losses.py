"""The output of a trunk with its own losses."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class WithLosses(NamedTuple):
    """Features, and losses by name, such as a KL divergence or the balance of a mixture of experts.

    A loss is trained only if a :class:`multitask.task.terms.Term` names it.
    """

    features: Tensor | Mapping[str, Tensor]
    """One tensor for all tasks, or a mapping with one per task."""
    losses: Mapping[str, Tensor | tuple[Tensor, float | Tensor]]
    """The mean over the batch, a scalar; one value per example, ``[batch]``; or a mean and its count."""
