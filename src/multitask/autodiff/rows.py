"""Jacobian rows in one buffer: one vector-Jacobian product a row, no second backward pass."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from multitask.autodiff.gradients import Cotangents, Engine, TaskGradients
from multitask.autodiff.products import inner_products


class RowGradients(TaskGradients):
    """A Jacobian stored as a matrix.

    Args:
        jacobian: Shape ``[k, n]``.
        parameters: The shared parameters, n numbers in all.
    """

    def __init__(self, jacobian: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self._jacobian = jacobian
        self._parameters = parameters

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``."""
        return inner_products(self._jacobian, self._jacobian)

    def combine(self, weights: Tensor) -> None:
        """Add ``weightsᵀ J`` to the gradients of the shared parameters."""
        self.assign(weights.to(self._jacobian.dtype) @ self._jacobian)

    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``."""
        return self._jacobian

    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, to the gradients of the shared parameters."""
        add_to_gradients(self._parameters, split_like(vector, self._parameters))


def split_like(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return views of ``vector``, shape ``[n]`` or longer, in the shapes of the parameters."""
    sizes = [p.numel() for p in parameters]
    parts = vector[: sum(sizes)].split(sizes)
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def add_to_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Add to ``.grad`` as ``backward`` does: set where there is none, accumulate elsewhere."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = gradient.to(parameter.dtype)
        else:
            parameter.grad += gradient.to(parameter.dtype)


class Rows(Engine):
    """Exact for any trunk: one backward pass a row, written into a buffer kept between steps."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._views: list[list[Tensor]] = []
        """Each row's part of each parameter: in a small network cutting takes as long as computing."""
        self._shapes: list[torch.Size] = []

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        cotangents: Cotangents,
        parameters: Sequence[nn.Parameter],
        direct: Sequence[Tensor | None] = (),
    ) -> RowGradients:
        """Pull the cotangents back through the trunk; see :class:`Engine`."""
        jacobian = self._allocate(len(cotangents), parameters)
        for _ in written(self._views, outputs, cotangents, parameters, direct):
            pass
        return RowGradients(jacobian, parameters)

    def _allocate(self, k: int, parameters: Sequence[nn.Parameter]) -> Tensor:
        n = sum(p.numel() for p in parameters)
        like = parameters[0]
        old, shapes = self._buffer, [p.shape for p in parameters]
        if old is None or old.shape != (k, n) or old.dtype != like.dtype or old.device != like.device:
            old = self._buffer = torch.empty(k, n, dtype=like.dtype, device=like.device)
            self._shapes = []
        if shapes != self._shapes:
            self._views, self._shapes = [split_like(row, parameters) for row in old], shapes
        return old


def written(
    rows: Iterable[Sequence[Tensor]],
    outputs: Sequence[Tensor],
    cotangents: Cotangents,
    parameters: Sequence[nn.Parameter],
    direct: Sequence[Tensor | None],
) -> Iterator[int]:
    """Write the rows one after the other, and yield the number of each as soon as it is there.

    Args:
        rows: Where to: of each row a view in the shape of each parameter. One row may stand for all, if each
            is used before the next.
        outputs: See :class:`Engine`.
        cotangents: See there.
        parameters: See there.
        direct: See there.
    """
    last = len(cotangents) - 1
    for i, (row, gradients) in enumerate(zip(rows, cotangents.rows(), strict=True)):
        roots = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
        if i < len(direct) and (penalty := direct[i]) is not None:
            roots.append((penalty, torch.ones_like(penalty)))
        write_row(row, roots, parameters, retain_graph=i < last)
        yield i


def write_row(
    row: Sequence[Tensor],
    roots: Sequence[tuple[Tensor, Tensor]],
    parameters: Sequence[nn.Parameter],
    retain_graph: bool,
) -> None:
    """Write one vector-Jacobian product into the views ``row``; parameters not reached get zeros."""
    roots = [(output, gradient) for output, gradient in roots if output.requires_grad]
    if not roots:
        torch._foreach_zero_(list(row))
        return
    found = torch.autograd.grad(
        [output for output, _ in roots],
        list(parameters),
        [gradient for _, gradient in roots],
        retain_graph=retain_graph,
        allow_unused=True,
    )
    write(row, found)


def write(row: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Write gradients into the views ``row``, zeros where there is none."""
    there = [(view, gradient) for view, gradient in zip(row, gradients, strict=True) if gradient is not None]
    if len(there) < len(row):
        torch._foreach_zero_([view for view, g in zip(row, gradients, strict=True) if g is None])
    if there:
        torch._foreach_copy_([view for view, _ in there], [gradient for _, gradient in there])
