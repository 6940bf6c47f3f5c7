"""Groups of the shared parameters: the columns of the Jacobian by layer or by tensor."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from multitask.gradients.products import inner_products
from multitask.gradients.task_gradients import TaskGradients

By = Literal["layer", "tensor"]


class Columns(NamedTuple):
    """The columns of one parameter."""

    name: str
    start: int
    end: int


def groups(gradients: TaskGradients, by: By, key: str = "weighting.groups") -> dict[str, list[Columns]]:
    """Return, by the group's name, the columns of the Jacobian that belong to it.

    A layer is a module: the parameters whose names are the same up to the last dot.

    Raises:
        ValueError: If the gradients do not say which parameters their columns belong to.
    """
    if not gradients.layout:
        raise ValueError(
            f"{key} needs gradients of the parameters, and weighting.engine gives others; take "
            "weighting.engine=auto."
        )
    found: dict[str, list[Columns]] = {}
    start = 0
    for name, size in gradients.layout:
        group = name if by == "tensor" else name.rpartition(".")[0]
        found.setdefault(group, []).append(Columns(name, start, start + size))
        start += size
    return found


def last_layer(gradients: TaskGradients) -> TaskGradients:
    """Return the gradients of the trunk's last layer alone."""
    return Part(gradients.jacobian(), list(groups(gradients, "layer", "weighting=gradnorm").values())[-1])


class Part(TaskGradients):
    """A group's columns of a Jacobian; what is combined of them is kept in ``vector``.

    Args:
        jacobian: All columns, shape ``[k, n]``.
        columns: The group's.
    """

    def __init__(self, jacobian: Tensor, columns: list[Columns]) -> None:
        slices = [jacobian[:, c.start : c.end] for c in columns]
        self._jacobian = slices[0] if len(slices) == 1 else torch.cat(slices, 1)
        self.layout = [(c.name, c.end - c.start) for c in columns]
        self.vector = torch.zeros_like(self._jacobian[0])

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``."""
        return inner_products(self._jacobian, self._jacobian)

    def combine(self, weights: Tensor) -> None:
        """Keep ``weightsᵀ J``."""
        self.assign(weights.to(self._jacobian.dtype) @ self._jacobian)

    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``."""
        return self._jacobian

    def assign(self, vector: Tensor) -> None:
        """Keep the vector, shape ``[n]``."""
        self.vector = self.vector + vector
