"""Physics-informed networks, whose losses are squared residuals of equations and conditions."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

from multitask.lightning.metric_keys import TaskMetrics, val_keys
from multitask.lightning.module import MultiLossModule
from multitask.lightning.parts import LossAndCount
from multitask.metrics.precision import Exact
from multitask.metrics.regression import RelativeL2
from multitask.physics.pointwise import Pointwise
from multitask.physics.problem import INSIDE, Problem

# Maximum number of elements in the per-point copies of the parameters.
_MOST_ELEMENTS = 2**22

Batch = Mapping[str, Tensor]
"""Points by place, ``[draws, n, d]``; in evaluation also ``grid``, ``[lines, n, d]``, and its ``solution``."""


class PINN(MultiLossModule):
    """A tanh network from points to fields, trained on the terms of a problem.

    A loss is the mean over points of the sum of its terms. The metrics of each field are ``relative_l2`` and ``mse``
    with respect to the solution on a grid.

    Args:
        problem: The problem.
        losses: The terms of each loss by name; by default one loss per term. ``ValueError`` unless each is in one loss.
        widths: Widths of the hidden layers.
    """

    def __init__(
        self,
        problem: Problem,
        losses: Mapping[str, Sequence[str]] | None = None,
        widths: Sequence[int] = (50, 50, 50, 50, 50),
    ) -> None:
        super().__init__()
        self.problem = problem
        self.places = problem.places()
        self.terms = {term: [term] for term in self.places} if losses is None else dict(losses)
        given = [term for terms in self.terms.values() for term in terms]
        if sorted(given) != sorted(self.places) or not all(self.terms.values()):
            raise ValueError(
                f"model.losses has the terms {', '.join(given) or 'none'}; give each of {', '.join(self.places)} once."
            )
        self.names = list(self.terms)
        self.net = tanh_network(len(problem.axes), widths, len(problem.fields))
        metrics = [Exact({"relative_l2": RelativeL2(), "mse": MeanSquaredError()}) for _ in problem.fields]
        self.metrics = nn.ModuleDict(dict(zip(problem.fields, metrics, strict=True)))

    @property
    def labels_can_be_missing(self) -> bool:
        """``False``: every draw has points for every term."""
        return False

    def forward(self, points: Tensor) -> Tensor:
        """Return the fields, ``[n, f]``, at points ``[n, d]``."""
        return self.net(points.to(self.dtype))

    def losses(self, batch: Batch) -> dict[str, LossAndCount]:
        """Return the mean losses, in evaluation with their numbers of points; in training these are constant.

        Raises ``ValueError`` if the batch has no points in training.
        """
        if self.training and not len(batch[INSIDE]):
            raise ValueError("the batch has no points")
        squares = self.squares(batch)
        losses: dict[str, LossAndCount] = {}
        for name, terms in self.terms.items():
            mean, count = self._mean(squares, terms)
            losses[name] = mean if self.training else (mean, float(count))
        return losses

    def squares(self, batch: Batch) -> dict[str, Tensor]:
        """Return each term at its points, the sum of squared residuals, ``[n]``."""
        squares: dict[str, Tensor] = {}
        for place in (INSIDE, *self.problem.faces):
            residuals = self._residuals(place, batch[place].flatten(0, 1), self.net)
            squares |= {term: r.square().sum(1) for term, r in residuals.items()}
        return squares

    @torch.enable_grad()
    def traces(self, batch: Batch) -> dict[str, LossAndCount]:
        """Return the mean over points of the squared gradient norms of the residuals, with its count, by loss."""
        parts: dict[str, list[Tensor]] = {term: [] for term in self.places}
        at_once = max(1, _MOST_ELEMENTS // sum(p.numel() for p in self.net.parameters()))
        for place in (INSIDE, *self.problem.faces):
            for points in batch[place].flatten(0, 1).split(at_once):
                net = Pointwise(self.net, len(points))
                for term, r in self._residuals(place, points, net).items():
                    norms = [net.squared_norms(component) for component in r.unbind(1)]
                    parts[term].append(torch.stack(norms).sum(0))
        norms_of = {term: torch.cat(norms) for term, norms in parts.items()}
        return {name: self._mean(norms_of, terms) for name, terms in self.terms.items()}

    def _mean(self, values: Mapping[str, Tensor], terms: Sequence[str]) -> tuple[Tensor, int]:
        """Return the mean over points of the sum of terms, and the number of points."""
        total = torch.stack([values[term].sum() for term in terms]).sum()
        count = sum({self.places[term]: len(values[term]) for term in terms}.values())
        return total / max(count, 1), count

    def _residuals(self, place: str, points: Tensor, net: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the residuals of the terms at a place, ``[n, c]``; squared conditions are averaged over fields."""
        if place == INSIDE:
            inside = points.to(self.dtype).requires_grad_()
            residuals = self.problem.residuals(net(inside), inside)
            return {term: r.view(len(points), -1) for term, r in residuals.items()}
        target = self.problem.condition(place, points).to(self.dtype)
        return {place: (net(points.to(self.dtype)) - target) / math.sqrt(len(self.problem.fields))}

    def add_measured(self, batch: Batch) -> None:
        """Add a batch to the mean losses and to the metrics of the fields."""
        super().add_measured(batch)
        with torch.no_grad():
            fields = self(batch["grid"].flatten(0, 1)).double()
        solution = batch["solution"].flatten(0, 1)
        for i, (_, metrics) in enumerate(self._by_field()):
            metrics.update(fields[:, i], solution[:, i])

    def measured(self) -> TaskMetrics:
        """Return losses and metrics since the last call, over all processes."""
        measured = dict(super().measured())
        for field, metrics in self._by_field():
            measured |= {(field, name): float(value) for name, value in metrics.compute().items()}
            metrics.reset()
        return measured

    def keys_of(self, names: Iterable[str]) -> set[str]:
        """Return the keys that validation logs."""
        metrics = [(field, name) for field in self.problem.fields for name in ("relative_l2", "mse")]
        return val_keys([*((name, "loss") for name in names), *metrics])

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """Return ``False``: all metrics are errors."""
        return False

    def _by_field(self) -> Iterable[tuple[str, Any]]:
        return self.metrics.items()


def tanh_network(inputs: int, widths: Sequence[int], outputs: int) -> nn.Sequential:
    """Return linear layers with tanh between them, Xavier-normal weights and zero biases."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.Tanh()]
        inputs = width
    layers.append(nn.Linear(inputs, outputs))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
