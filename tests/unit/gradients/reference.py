"""The reference for a step: rows by one backward pass each, and a weighting with known weights."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from multitask.gradients.task_gradients import TaskGradients
from multitask.step import Step, StepResult
from multitask.weighting.base import Rows, WeightedMethod

Losses = Mapping[str, Tensor]
ROUNDING = {"rtol": 1e-9, "atol": 1e-11}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Known(WeightedMethod):
    """Weights the k rows by ``-1 … 2``, and records the Gramian."""

    def __init__(self, rows: Rows = "task") -> None:
        super().__init__()
        self.rows = rows
        self.seen: Tensor | None = None

    @staticmethod
    def of(k: int) -> Tensor:
        return torch.linspace(-1.0, 2.0, k, dtype=torch.float64)

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        self.seen = gradients.gramian().clone()
        return self.of(len(losses)).to(losses)


def leaves_of(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def rows(losses: Losses, parameters: Sequence[Tensor]) -> list[list[Tensor | None]]:
    """Return the gradients of each loss; for losses ``[parts]``, those of all losses part by part."""
    each = [loss.reshape(-1) for loss in losses.values()]
    found: list[list[Tensor | None]] = []
    for part in range(len(each[0])):
        for loss in each:
            if loss.requires_grad:
                found += [
                    list(torch.autograd.grad(loss[part], parameters, retain_graph=True, allow_unused=True))
                ]
            else:
                found += [[None] * len(parameters)]
    return found


def real(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    gradient = torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient
    return gradient.flatten().double()


def expected(
    found: list[list[Tensor | None]],
    parameters: Sequence[Tensor],
    m: int,
    reached: list[set[int]] | None = None,
    weigh: Callable[[Tensor], Tensor] = lambda gramian: Known.of(len(gramian)),
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the Gramian over the shared parameters, and the gradient of every parameter.

    Args:
        found: The rows, as :func:`rows` returns them.
        parameters: The parameters.
        m: The number of losses.
        reached: The losses that reached each parameter in earlier steps; this step's are added.
        weigh: Maps the Gramian to the weights.
    """
    reached = [set() for _ in parameters] if reached is None else reached
    for row, gradients in enumerate(found):
        for losses, gradient in zip(reached, gradients, strict=True):
            if gradient is not None:
                losses.add(row % m)
    shared = [len(losses) > 1 for losses in reached]
    matrix = [
        [torch.zeros_like(real(p)) if g is None else real(g) for p, g in zip(parameters, row, strict=True)]
        for row in found
    ]
    chosen = [[g for g, is_shared in zip(row, shared, strict=True) if is_shared] for row in matrix]
    J = torch.stack([torch.cat([*row, torch.zeros(0).double()]) for row in chosen])
    weights = weigh(J @ J.T).double()
    parts = len(found) // m
    gradients: list[Tensor | None] = []
    for index, is_shared in enumerate(shared):
        factors = weights if is_shared else torch.full((len(found),), 1.0 / parts, dtype=torch.float64)
        terms = [factors[i] * matrix[i][index] for i in range(len(found))]
        nothing = not is_shared and all(row[index] is None for row in found)
        gradients.append(None if nothing else torch.stack(terms).sum(0))
    return J @ J.T, gradients


def assert_usable(parameters: Sequence[Tensor]) -> None:
    """Assert that no gradient overlaps in memory with itself, another gradient or a parameter."""
    grads = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
    ranges: list[tuple[int, int]] = []
    for grad in grads:
        assert not grad.requires_grad
        if grad.numel():
            strides = sorted((s, n) for s, n in zip(grad.stride(), grad.shape, strict=True) if n > 1)
            assert all(stride > 0 for stride, _ in strides), "expanded"
            span = sum(stride * (n - 1) for stride, n in strides) + 1
            ranges.append((grad.data_ptr(), grad.data_ptr() + span * grad.element_size()))
    for p in parameters:
        if p.numel():
            ranges.append((p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()))
    ranges.sort()
    for (_, end), (start, _) in pairwise(ranges):
        assert start >= end, "aliased"


def assert_step(
    step: Step, make_losses: Callable[[], Losses], parameters: Sequence[Tensor], **tolerance: float
) -> StepResult:
    """Compare a step with the reference: the Gramian, and the ``.grad`` of every parameter.

    Args:
        step: With :class:`Known` as its weighting.
        make_losses: Returns the same losses at each call, in a new graph.
        parameters: The trained parameters.
        tolerance: ``rtol`` and ``atol``.
    """
    tolerance = tolerance or ROUNDING
    losses = make_losses()
    gramian, gradients = expected(rows(losses, parameters), parameters, len(losses))
    for p in parameters:
        p.grad = None
    known = step.weighting
    assert isinstance(known, Known)
    known.seen = None
    result = step.backward(make_losses())
    seen = known.seen
    if seen is not None:
        torch.testing.assert_close(seen.double(), gramian, **tolerance)
    else:
        assert not gramian.any()
    for index, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None:
            assert p.grad is None or not p.grad.any(), index
        else:
            assert p.grad is not None, index
            assert p.grad.shape == p.shape
            assert p.grad.dtype == p.dtype
            torch.testing.assert_close(
                real(p.grad), gradient, msg=lambda m, n=index: f"{n}: {m}", **tolerance
            )
    assert_usable(parameters)
    return result
