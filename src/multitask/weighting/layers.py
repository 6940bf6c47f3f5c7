"""Groups of the shared parameters: the columns of the Jacobian by layer or by tensor."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from multitask.gradients.rows import inner_products
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
        group = name if by == "tensor" else layer_of(name)
        found.setdefault(group, []).append(Columns(name, start, start + size))
        start += size
    return found


def last_layer(gradients: TaskGradients, layer: str | None, key: str) -> TaskGradients:
    """Return the gradients of one layer alone: the last that all losses reach, or the one that is named.

    Args:
        gradients: Those of all shared parameters.
        layer: Full name of a parameter, a layer, or a module with several; ``None`` for the layer that has the fewest
            operations between it and the losses.
        key: The config key, for errors.

    Raises:
        ValueError: If there is no such layer among those that are shared.
    """
    gradients = gradients.local
    found = groups(gradients, "layer", key)
    if layer is not None:
        columns = [c for of_group in found.values() for c in of_group if is_part(c.name, layer)]
        if not columns:
            raise ValueError(f"{key}={layer} is shared by no two losses; choose {closest(layer, found)}.")
    elif len(found) == 1:
        (columns,) = found.values()
    else:
        columns = found[_nearest(gradients, key)]
    return Part(gradients, gradients.jacobian(), columns)


def is_part(parameter: str, layer: str) -> bool:
    """Return whether a parameter is that of a name, or in the layer or module of that name."""
    return f"{parameter}.".startswith(f"{layer}.")


def layer_of(parameter: str) -> str:
    """Return the name of a parameter's layer: its own up to the last dot."""
    return parameter.rpartition(".")[0]


def closest(layer: str, known: Iterable[str]) -> str:
    """Return the known names that are most like a name, a dozen at most, in words."""
    names = list(dict.fromkeys(known))
    return ", ".join(names if len(names) <= 12 else difflib.get_close_matches(layer, names, 12, 0.0))


def _nearest(gradients: TaskGradients, key: str) -> str:
    """Return the layer with the fewest operations between it and the losses, of equal ones the last."""
    fewest: dict[str, int] = {}
    for (name, _), distance in zip(gradients.layout, gradients.distances, strict=True):
        if distance is not None:
            layer = layer_of(name)
            fewest[layer] = min(distance, fewest.get(layer, distance))
    if not fewest:
        layers = dict.fromkeys(layer_of(name) for name, _ in gradients.layout)
        raise ValueError(f"no layer is reached by all losses; name one, {key}=… of {closest('', layers)}.")
    return min(reversed(fewest), key=lambda layer: fewest[layer])


class Part(TaskGradients):
    """A group's columns of a Jacobian; what is combined of them is kept in ``vector``.

    Args:
        gradients: Those of all shared parameters.
        jacobian: All columns, shape ``[k, n]``.
        columns: The group's.
    """

    def __init__(self, gradients: TaskGradients, jacobian: Tensor, columns: list[Columns]) -> None:
        slices = [jacobian[:, c.start : c.end] for c in columns]
        self._jacobian = slices[0] if len(slices) == 1 else torch.cat(slices, 1)
        self._gradients = gradients
        self.layout = [(c.name, c.end - c.start) for c in columns]
        self.vector = torch.zeros_like(self._jacobian[0])

    @property
    def distances(self) -> Sequence[int | None]:  # type: ignore[override]
        """How many operations lie between the losses and each parameter of the group."""
        whole = zip(self._gradients.layout, self._gradients.distances, strict=True)
        by_name = {name: distance for (name, _), distance in whole}
        return [by_name[name] for name, _ in self.layout]

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``."""
        return self._gradients.total(inner_products(self._jacobian, self._jacobian))

    def combine(self, weights: Tensor) -> None:
        """Keep ``weightsᵀ J``."""
        self.assign(weights.to(self._jacobian.dtype) @ self._jacobian)

    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``."""
        return self._jacobian

    def assign(self, vector: Tensor) -> None:
        """Keep the vector, shape ``[n]``."""
        self.vector = self.vector + vector
