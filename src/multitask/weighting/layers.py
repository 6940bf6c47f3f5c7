"""Groups of the shared parameters: the columns of the Jacobian by layer or by tensor."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from multitask.gradients.rows import inner_products, sent
from multitask.gradients.task_gradients import TaskGradients

By = Literal["layer", "tensor"]


class Columns(NamedTuple):
    """The columns of one parameter."""

    name: str
    start: int
    end: int


def groups(gradients: TaskGradients, by: By, key: str = "weighting.groups") -> dict[str, list[Columns]]:
    """Return the columns of the Jacobian in each group, by the group's name.

    A layer is a module: the parameters whose names are the same up to the last dot.

    Raises:
        ValueError: If the gradients are not with respect to parameters.
    """
    if not gradients.layout:
        raise ValueError(
            f"{key} needs gradients of the parameters, which weighting.engine does not give; set "
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
    """Return the gradients of one layer, given those of all shared parameters.

    ``layer`` is the full name of a parameter, layer or module; ``None`` is the layer that all losses reach with the
    fewest operations in between. ``key`` is the config key, for errors.

    Raises:
        ValueError: If no shared layer has that name.
    """
    gradients = gradients.local
    found = groups(gradients, "layer", key)
    if layer is not None:
        columns = [c for group in found.values() for c in group if is_part(c.name, layer)]
        if not columns:
            raise ValueError(f"{key}={layer} is not shared by two losses; choose {closest(layer, found)}.")
    elif len(found) == 1:
        (columns,) = found.values()
    else:
        columns = found[_nearest(gradients, key)]
    return Part(gradients, gradients.jacobian(), columns)


def is_part(parameter: str, layer: str) -> bool:
    """Return whether a parameter has a name, or is in the layer or module of that name."""
    return f"{parameter}.".startswith(f"{layer}.")


def layer_of(parameter: str) -> str:
    """Return the name of a parameter's layer: the parameter's name up to the last dot."""
    return parameter.rpartition(".")[0]


def closest(layer: str, known: Iterable[str]) -> str:
    """Return up to twelve known names most similar to a name, separated by commas."""
    names = list(dict.fromkeys(known))
    return ", ".join(names if len(names) <= 12 else difflib.get_close_matches(layer, names, 12, 0.0))


def _nearest(gradients: TaskGradients, key: str) -> str:
    """Return the layer with the fewest operations between it and the losses, the last of several."""
    fewest: dict[str, int] = {}
    for (name, _), distance in zip(gradients.layout, gradients.distances, strict=True):
        if distance is not None:
            layer = layer_of(name)
            fewest[layer] = min(distance, fewest.get(layer, distance))
    if not fewest:
        layers = dict.fromkeys(layer_of(name) for name, _ in gradients.layout)
        raise ValueError(f"no layer is reached by all losses; set {key} to one of {closest('', layers)}.")
    return min(reversed(fewest), key=lambda layer: fewest[layer])


class Part(TaskGradients):
    """The columns of one group in the Jacobian ``[k, n]`` of ``gradients``; the combined gradient is in ``vector``."""

    def __init__(
        self, gradients: TaskGradients, jacobian: Tensor, columns: list[Columns], on_cpu: bool = False
    ) -> None:
        slices = [jacobian[:, c.start : c.end] for c in columns]
        self._jacobian = slices[0] if len(slices) == 1 else torch.cat(slices, 1)
        self._gradients = gradients
        self._on_cpu = on_cpu
        self.layout = [(c.name, c.end - c.start) for c in columns]
        self.vector = torch.zeros_like(self._jacobian[0])

    @property
    def distances(self) -> Sequence[int | None]:  # type: ignore[override]
        """The number of operations between the losses and each parameter of the group."""
        pairs = zip(self._gradients.layout, self._gradients.distances, strict=True)
        by_name = {name: distance for (name, _), distance in pairs}
        return [by_name[name] for name, _ in self.layout]

    def gramian(self) -> Tensor:
        gramian = self._gradients.total(inner_products(self._jacobian, self._jacobian))
        return gramian.cpu() if self._on_cpu else gramian

    def combine(self, weights: Tensor) -> None:
        """Store ``weightsᵀ J``; ``weights`` is ``[k]``."""
        self.assign(sent(weights.to(self._jacobian.dtype), self._jacobian.device) @ self._jacobian)

    def jacobian(self) -> Tensor:
        return self._jacobian

    def assign(self, vector: Tensor) -> None:
        """Store the vector, shape ``[n]``."""
        self.vector = self.vector + vector
