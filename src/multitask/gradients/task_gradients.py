"""The interface between engines, which compute the losses' gradients, and weightings, which combine them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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


class MicroBatch(NamedTuple):
    """A micro-batch of a step, whose gradients are added to those of the k rows."""

    pulls: Pulls
    """The backward passes of the rows that it has."""
    parameters: Sequence[Tensor]
    """The shared parameters."""
    weights: Sequence[float]
    """The factor of each row's gradient; 1 in the first micro-batch that has the row."""
    factors: Sequence[float] | None = None
    """With the last micro-batch on several processes, which sends the sums: the factor of each row's."""
    wanted: Sequence[int] | None = None
    """The rows that are sent; all by default."""
    alone: bool = False
    """Whether it is the whole step."""


class Engine(ABC):
    """Computes the Jacobian of the losses of a step, micro-batch by micro-batch."""

    memory: str = "rows"
    """The value of ``weighting.memory`` that selects the engine; other engines than ``rows`` take one micro-batch."""

    by_gramian = False
    """Whether the rows are only combined and multiplied with each other, and need not form a matrix."""

    def clear(self) -> None:
        """Discard the micro-batches of a step."""

    def lay_out(self, parameters: Sequence[Tensor], moved: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        """Change the shared parameters; ``moved`` are row, parameter and gradient so far of those that had a row."""

    @abstractmethod
    def add(self, batch: MicroBatch) -> None:
        """Compute a micro-batch's gradients; those of own parameters remain in ``pulls.own``."""

    @abstractmethod
    def gradients(self, rows: Sequence[int], factors: Sequence[float]) -> TaskGradients:
        """Return some of the rows, summed over micro-batches and processes, each times a factor."""
