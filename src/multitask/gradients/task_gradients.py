"""The interface between engines, which compute the losses' gradients, and weightings, which combine them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from multitask.gradients.losses import Pulls


class TaskGradients(ABC):
    """The Jacobian of k losses with respect to n shared parameters, however it is stored.

    ``combine`` and ``assign`` add to the ``.grad`` of the shared parameters, as ``backward`` does.
    """

    layout: Sequence[tuple[str, int]] = ()
    """Name and size of each shared parameter in the order of the columns; empty if columns have other meanings."""

    distances: Sequence[int | None] = ()
    """The number of operations between the losses and each parameter of the layout; ``None`` for a parameter that not
    all losses reach."""

    fresh: bool = False
    """Whether the gradients lie in memory that is to be freed when the step ends."""

    @property
    def local(self) -> "TaskGradients":
        """The columns of this process; all columns, unless parameters are sharded.

        They suffice for a method that treats columns separately, or reduces them by :meth:`total` or :meth:`greatest`.
        """
        return self

    def total(self, part: Tensor) -> Tensor:
        """Return the sum over all columns, given the sum over this process's."""
        return part

    def greatest(self, part: Tensor) -> Tensor:
        """Return the maximum over all columns, given the maximum over this process's."""
        return part

    @abstractmethod
    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``."""

    @abstractmethod
    def combine(self, weights: Tensor) -> None:
        """Add ``weightsᵀ J`` to the gradients of the shared parameters; ``weights`` is ``[k]``."""

    @abstractmethod
    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``, with the parameters' columns in their order."""

    @abstractmethod
    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, to the gradients of the shared parameters."""


class Engine(ABC):
    """Computes the Jacobian of the losses of a batch."""

    @abstractmethod
    def differentiate(self, pulls: Pulls, parameters: Sequence[Tensor]) -> TaskGradients:
        """Return the gradients with respect to the shared parameters; those of own parameters remain in ``pulls.own``.

        Args:
            pulls: The backward passes, one per row.
            parameters: The shared parameters, with n elements in total.
        """
