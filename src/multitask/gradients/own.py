"""Gradients of what one loss alone reaches: heads, and branches of a trunk."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.rows import add_to_gradients, numbers, row_like, split_like


class OwnGradients:
    """Each row's gradients of its task's own parameters: means over micro-batches, kept until the step ends."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        self._memory: set[int] = set()
        self.from_python = False
        """Whether gradients come from functions written in Python, which may hand out what others still use."""

    def clear(self) -> None:
        """Forget everything."""
        self._rows, self._memory = {}, set()

    def add(
        self, row: int, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], share: float = 1.0
    ) -> None:
        """Add a micro-batch's gradients.

        Args:
            row: The row.
            parameters: The parameters of its task.
            gradients: Their gradients; ``None`` for those that were not reached.
            share: The part of this micro-batch in the mean so far.
        """
        new = {id(p): (p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None}
        old = self._rows.setdefault(row, {})
        if share == 1.0:
            self._rows[row] = {key: (p, self._apart(p, g)) for key, (p, g) in new.items()}
            return
        for key, (p, mean) in old.items():
            if key not in new:
                mean.mul_(1 - share)
            elif mean.is_sparse:
                old[key] = (p, _dense(mean).lerp_(_dense(new[key][1]), share))
            else:
                mean.lerp_(_dense(new[key][1]), share)
        for key, (p, gradient) in new.items():
            if key not in old:
                old[key] = (p, _dense(gradient) * share)

    @staticmethod
    def differentiate(
        edges: Sequence[GradientEdge], seeds: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """Return the gradients of parameters in one last backward pass."""
        if not edges or not parameters:
            return [None] * len(parameters)
        return torch.autograd.grad(edges, list(parameters), seeds, allow_unused=True)

    def take(self, shared: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Remove and yield row, parameter and gradient of what has become shared."""
        keys = {id(p) for p in shared}
        for row, gradients in self._rows.items():
            for key in keys & gradients.keys():
                yield row, *gradients.pop(key)

    def weighted(self, factors: Mapping[int, float | Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the sum of the rows' gradients times their factors, by parameter.

        Args:
            factors: The factor of each row that takes part.
        """
        total: dict[int, tuple[Tensor, Tensor]] = {}
        for row, factor in factors.items():
            plain = isinstance(factor, float) and factor == 1.0
            for key, (p, gradient) in self._rows.get(row, {}).items():
                term = gradient if plain else gradient * _as_weight(factor, gradient)
                total[key] = (p, total[key][1] + term if key in total else term)
        return total

    def all(self) -> list[Tensor]:
        """Return the numbers of all gradients, real ones."""
        return [_numbers(gradient) for row in self._rows.values() for _, gradient in row.values()]

    def _apart(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return a gradient in memory of its own, laid out as its parameter.

        Autograd hands out views, and to the two parameters of a sum one and the same tensor.
        """
        if gradient.is_sparse:
            return gradient.clone()
        new = gradient.data_ptr() not in self._memory and not self.from_python
        if not new or gradient.stride() != parameter.stride() or gradient._is_view():
            gradient = torch.empty_like(parameter).copy_(gradient)
        self._memory.add(gradient.data_ptr())
        return gradient


def write(gradients: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Add gradients to the ``.grad`` of their parameters."""
    add_to_gradients([p for p, _ in gradients.values()], [g for _, g in gradients.values()])


def sum_over_processes(
    gradients: Mapping[int, tuple[Tensor, Tensor]], candidates: Sequence[Tensor]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the sums over processes; where only some have a gradient, the others add zeros.

    Args:
        gradients: This process's.
        candidates: All parameters that could have one, in the same order on every process.
    """
    if not candidates:
        return {}
    there = torch.tensor([float(id(p) in gradients) for p in candidates], device=candidates[0].device)
    dist.all_reduce(there, op=dist.ReduceOp.MAX)
    some = [p for p, anywhere in zip(candidates, there.tolist(), strict=True) if anywhere]
    if not some:
        return {}
    flat = row_like(some).new_zeros(numbers(some))
    for p, view in zip(some, split_like(flat, some), strict=True):
        if id(p) in gradients:
            gradient = _dense(gradients[id(p)][1])
            view.copy_(torch.view_as_real(gradient) if gradient.is_complex() else gradient)
    dist.all_reduce(flat)
    return {id(p): (p, view) for p, view in zip(some, split_like(flat, some), strict=True)}


def _as_weight(factor: float | Tensor, like: Tensor) -> float | Tensor:
    return factor.to(device=like.device, dtype=like.dtype.to_real()) if isinstance(factor, Tensor) else factor


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _numbers(gradient: Tensor) -> Tensor:
    gradient = gradient._values() if gradient.is_sparse else gradient
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
