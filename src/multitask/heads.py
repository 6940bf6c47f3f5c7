"""Gradients of what belongs to one task each: its head, and the trunk's parameters of its own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from multitask.gradients.task_gradients import Cotangents
from multitask.gradients.rows import add_to_gradients

if TYPE_CHECKING:
    from multitask.module import MultiTaskModule


class Heads:
    """Gathers these gradients over the micro-batches of one step, and weighs them at its end.

    A row of the Jacobian is of a whole task, or of a part of its examples. By itself a head gets the
    gradient of its task's mean loss, which is the mean over the parts.

    Args:
        module: The module.
        present: The tasks that have rows.
        by_row: Whether the weights of the end may differ between the rows of a parameter. Graphs are
            kept until then.
    """

    def __init__(self, module: "MultiTaskModule", present: Sequence[int], by_row: bool) -> None:
        self._module = module
        self._present = present
        self._by_row = by_row
        self._losses: list[Tensor] = []
        self._rows: dict[int, list[Tensor | None]] = {}

    def add(
        self,
        losses: Tensor,
        features: Mapping[int, tuple[Tensor, Tensor]],
        outputs: Sequence[Tensor],
        cotangents: Cotangents,
    ) -> None:
        """Take up a micro-batch, after the backward pass of its summed losses.

        Args:
            losses: The rows' losses, shape ``[k]``, with their graph where rows are told apart.
            features: For each task that has a head, its features in the trunk's graph and the leaf that
                its head saw, whose gradient is the task's.
            outputs: The trunk's outputs.
            cotangents: The rows' gradients at the outputs.
        """
        ownership = self._module.ownership
        if not self._by_row:
            for i in self._present:
                if i in features:
                    ownership.pull(i, features[i][0], features[i][1].grad)
            return
        self._losses.append(losses)
        if not ownership.all_specific():
            return
        for row, gradients in enumerate(cotangents.rows()):
            i = self._present[row % len(self._present)]
            for output, gradient in zip(outputs, gradients, strict=True):
                if gradient is not None:
                    found = ownership.gradient(i, output, gradient)
                    before = self._rows.get(row, [None] * len(found))
                    self._rows[row] = [_sum(a, b) for a, b in zip(before, found, strict=True)]

    def finish(self, parts: int, weights: Tensor | None, factors: Tensor | None) -> None:
        """Weigh what was gathered.

        Args:
            parts: How many rows a task has.
            weights: The weight of each row, shape ``[k · parts]``; ``None`` where heads go by their own loss.
            factors: The factor of each task's own gradient, shape ``[k]``; ``None`` stands for ones.
        """
        k = len(self._present)
        if not self._by_row:
            if factors is not None or parts > 1:
                own = torch.ones(k) if factors is None else factors
                for i, factor in zip(self._present, own / parts, strict=True):
                    name = self._module.names[i]
                    scale([*self._module.ownership.of(i), *self._module.tasks[name].parameters()], factor)
            return
        if weights is None:
            own = torch.ones(k) if factors is None else factors
            weights = (own / parts).repeat(parts)
        self._weigh(weights.to(self._losses[0].device))

    def _weigh(self, weights: Tensor) -> None:
        """Put the gradients of the weighted losses in place of those of the plain ones."""
        for row, gradients in self._rows.items():
            i = self._present[row % len(self._present)]
            _add(
                self._module.ownership.of(i),
                [None if g is None else weights[row].to(g.dtype) * g for g in gradients],
            )
        heads = [p for p in self._module.tasks.parameters() if p.requires_grad and p.grad is not None]
        if not heads:
            return
        for parameter in heads:
            parameter.grad = None
        for losses in self._losses:
            total = (weights.to(losses.dtype) * losses).sum() * self._module.loss_scale
            _add(heads, torch.autograd.grad(total, heads, allow_unused=True))


def are_tied(module: "MultiTaskModule") -> bool:
    """Return whether a parameter of a head belongs to several tasks, penalties among them."""
    each = [p for task in module.tasks.values() for p in task.parameters()]
    return len({id(p) for p in each}) < len(each) or any(module.penalties_on(p) for p in each)


def pull_penalty(penalty: Tensor, heads: Sequence[nn.Parameter]) -> None:
    """Give the heads' parameters their gradient of a penalty; the trunk's is a row of the Jacobian."""
    if heads:
        _add(heads, torch.autograd.grad(penalty, heads, retain_graph=True, allow_unused=True))


def scale(parameters: Sequence[nn.Parameter], factor: Tensor) -> None:
    """Multiply the gradients of parameters by a factor."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad *= factor.to(parameter.grad)


def _add(parameters: Sequence[nn.Parameter], found: Sequence[Tensor | None]) -> None:
    there = [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]
    add_to_gradients([p for p, _ in there], [g for _, g in there])


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
