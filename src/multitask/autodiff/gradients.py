"""The interface between what computes task gradients and what combines them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


class TaskGradients(ABC):
    """Gradients of k losses with respect to n shared parameters, however they are stored.

    A combiner sees them through four verbs; rows, layer-wise factors or shards on several
    processes are implementations of the same interface. ``combine`` and ``assign`` add to the
    ``.grad`` of the shared parameters, as ``backward`` does.
    """

    layout: Sequence[tuple[str, int]] = ()
    """Name and size of each shared parameter in the order of the Jacobian's columns; empty where
    the columns are something else. Whoever makes the gradients sets it."""

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


@dataclass
class Cotangents:
    """What flows back into the trunk: for each loss, its gradient at the trunk's outputs.

    ``by_task[i]`` is aligned with the trunk's outputs; ``None`` where task i does not use that
    output. With ``groups`` (shape ``[batch]``, values in ``0 … count − 1``) each task has one row a
    group: the gradient of the losses of the examples in that group alone, which is the task's
    gradient masked by the group, since heads treat examples independently. Rows are ordered
    group by group, tasks within a group, as a loss matrix ``[count, m]`` is flattened.
    """

    by_task: list[list[Tensor | None]]
    groups: Tensor | None = None
    count: int = 1

    def __len__(self) -> int:
        return self.count * len(self.by_task)

    def rows(self) -> Iterator[list[Tensor | None]]:
        """Yield one list of output gradients a row."""
        for group in range(self.count):
            for gradients in self.by_task:
                if self.groups is None:
                    yield gradients
                else:
                    yield [None if g is None else _keep(g, self.groups == group) for g in gradients]


def _keep(gradient: Tensor, examples: Tensor) -> Tensor:
    return gradient * examples.view(-1, *[1] * (gradient.ndim - 1)).to(gradient.dtype)


class Engine(ABC):
    """One way to differentiate a trunk, once a row."""

    accumulates: bool = False
    """Whether successive calls add up, over micro-batches and processes, until :meth:`clear`."""

    def clear(self) -> None:
        """Begin a new sum, where calls add up."""

    @contextmanager
    def watch(self, trunk: nn.Module) -> Iterator[None]:
        """Surround the trunk's forward pass; engines that need its inner values collect them here."""
        yield

    @abstractmethod
    def differentiate(
        self,
        outputs: Sequence[Tensor],
        cotangents: Cotangents,
        parameters: Sequence[nn.Parameter],
        direct: Sequence[Tensor | None] = (),
    ) -> TaskGradients:
        """Pull the cotangents back through the trunk.

        Args:
            outputs: The trunk's outputs, with their graph.
            cotangents: One gradient at the outputs a row.
            parameters: The shared parameters, n numbers in all.
            direct: For each row, a loss that depends on the parameters without passing through the
                outputs (a penalty), or ``None``. Empty where there is none. Such a loss is one a
                task: with groups, it belongs to the row of the first group.
        """
