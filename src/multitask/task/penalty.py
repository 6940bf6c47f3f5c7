"""A penalty on named parameters: a task without head and target."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn


class SumOfSquares(nn.Module):
    """Σ θ² over all parameters (L2)."""

    def forward(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the sum, a scalar."""
        return torch.stack([p.square().sum() for p in parameters.values()]).sum()


class SumOfAbsolutes(nn.Module):
    """Σ |θ| over all parameters (L1)."""

    def forward(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the sum, a scalar."""
        return torch.stack([p.abs().sum() for p in parameters.values()]).sum()


class Penalty(nn.Module):
    """A loss of named parameters, which the weighting combines with the other losses.

    Args:
        parameters: Patterns of parameter names: ``trunk.*``, ``trunk.*.weight``, ``tasks.left.head.*``.
        loss: Parameters by name → a scalar; by default the sum of squares.
        weight: A constant factor of the loss, applied before the weighting.
    """

    def __init__(
        self,
        parameters: Sequence[str] = ("trunk.*",),
        loss: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.patterns = [parameters] if isinstance(parameters, str) else list(parameters)
        self.loss = SumOfSquares() if loss is None else loss
        self.weight = weight

    def forward(self, named: Iterable[tuple[str, nn.Parameter]]) -> Tensor:
        """Return the penalty, a scalar, given the model's ``named_parameters()``; see :meth:`chosen`."""
        return self.weight * self.loss(self.chosen(named))

    def chosen(self, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
        """Return the parameters that match a pattern; raise ``ValueError`` if a pattern matches none."""
        known = dict(named)
        chosen: set[str] = set()
        for pattern in self.patterns:
            matched = {name for name in known if fnmatchcase(name, pattern)}
            if not matched:
                some = ", ".join(list(known)[:6]) + (", …" if len(known) > 6 else "")
                raise ValueError(f"parameters: no name matches '{pattern}'; there are {some}")
            chosen |= matched
        return {name: parameter for name, parameter in known.items() if name in chosen}
