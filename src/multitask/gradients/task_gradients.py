"""The interface between what computes task gradients and what combines them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from multitask.gradients.losses import Pulls


class TaskGradients(ABC):
    """Gradients of k losses with respect to n shared parameters, however they are stored.

    A combiner sees them through four verbs; rows, layer-wise factors or shards on several
    processes are implementations of the same interface. ``combine`` and ``assign`` add to the
    ``.grad`` of the shared parameters, as ``backward`` does.
    """

    layout: Sequence[tuple[str, int]] = ()
    """Name and size of each shared parameter in the order of the Jacobian's columns; empty where
    the columns are something else. Whoever makes the gradients sets it."""

    distances: Sequence[int | None] = ()
    """How many operations lie at most between the losses and each parameter of the layout; ``None`` for
    those that not all losses reach."""

    fresh: bool = False
    """Whether the gradients lie in memory that is to be freed when the step ends."""

    @property
    def local(self) -> "TaskGradients":
        """The columns that this process keeps: all, unless parameters are split over processes.

        A method that treats each column by itself, or takes sums and maxima over columns by :meth:`total` and
        :meth:`greatest`, needs no more.
        """
        return self

    def total(self, part: Tensor) -> Tensor:
        """Return the sum over all columns, given that over this process's."""
        return part

    def greatest(self, part: Tensor) -> Tensor:
        """Return the maximum over all columns, given that over this process's."""
        return part

    @abstractmethod
    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``."""

    @abstractmethod
    def combine(self, weights: Tensor) -> None:
        """Add ``weightsᵀ J`` to the gradients of the shared parameters; ``weights`` is ``[k]``."""

    @abstractmethod
    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``, parameters flattened and concatenated in their order."""

    @abstractmethod
    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, to the gradients of the shared parameters."""


class Engine(ABC):
    """One way to compute the Jacobian of a step's losses."""

    @abstractmethod
    def differentiate(self, pulls: Pulls, parameters: Sequence[Tensor]) -> TaskGradients:
        """Pull every row back to the shared parameters, and to the own parameters of its task on the way.

        Args:
            pulls: The backward passes, k in all.
            parameters: The shared parameters, n numbers in all.
        """
