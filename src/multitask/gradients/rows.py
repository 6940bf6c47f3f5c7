"""Jacobian rows in one buffer: one vector-Jacobian product per row, no second backward pass."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multitask.gradients.losses import Pulls
from multitask.gradients.task_gradients import Engine, TaskGradients

if TYPE_CHECKING:
    from multitask.gradients.graph import Layout


# Numbers of a row that one product of matrices sums.
_BLOCK = 1024
# Up to here the rounding of one long sum is that of what is summed.
_SHORT = 2**16


class RowGradients(TaskGradients):
    """A Jacobian stored as a matrix.

    Args:
        jacobian: Shape ``[k, n]``.
        parameters: The shared parameters, n numbers in all.
    """

    def __init__(self, jacobian: Tensor, parameters: Sequence[Tensor]) -> None:
        self._jacobian = jacobian
        self._parameters = parameters

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``."""
        return inner_products(self._jacobian, self._jacobian)

    def combine(self, weights: Tensor) -> None:
        """Add ``weightsᵀ J`` to the gradients of the shared parameters."""
        vector = weights.to(self._jacobian.dtype) @ self._jacobian
        add_to_gradients(self._parameters, split_like(vector, self._parameters))

    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``."""
        return self._jacobian

    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, to the gradients of the shared parameters."""
        add_to_gradients(self._parameters, split_like(vector.clone(), self._parameters))


def real_shape(parameter: Tensor) -> torch.Size:
    """Return the shape of a parameter's columns: a complex number is two real ones."""
    return torch.Size([*parameter.shape, 2]) if parameter.is_complex() else parameter.shape


def numbers(parameters: Iterable[Tensor]) -> int:
    """Return how many real numbers parameters have."""
    return sum(real_shape(p).numel() for p in parameters)


def row_like(parameters: Sequence[Tensor]) -> Tensor:
    """Return an empty tensor of the rows' dtype and device: the real dtype that holds all parameters' numbers."""
    dtype = parameters[0].dtype if parameters else torch.get_default_dtype()
    for p in parameters[1:]:
        if p.dtype != dtype:
            dtype = torch.promote_types(dtype, p.dtype)
    return torch.empty(0, dtype=dtype.to_real(), device=parameters[0].device if parameters else None)


def split_like(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return views of ``vector``, shape ``[n]`` or longer, in the (real) shapes of the parameters."""
    shapes = [real_shape(p) for p in parameters]
    sizes = [shape.numel() for shape in shapes]
    parts = vector[: sum(sizes)].split(sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def add_to_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Add to ``.grad`` as ``backward`` does: set where there is none, accumulate elsewhere."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.is_complex() and not gradient.is_complex():
            gradient = torch.complex(*gradient.unbind(-1))  # a view could begin at an odd number
        if parameter.grad is None:
            parameter.grad = gradient.to(parameter.dtype)
        elif parameter.grad.is_sparse:
            parameter.grad = gradient.to(parameter.dtype) + parameter.grad
        else:
            parameter.grad += gradient.to(parameter.dtype)


class Rows(Engine):
    """Exact for any graph: one backward pass per row, written into a buffer kept between steps."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._views: list[list[Tensor]] = []
        """Each row's part of each parameter: in a small network cutting takes as long as computing."""
        self._shapes: list[torch.Size] = []

    def differentiate(self, pulls: Pulls, parameters: Sequence[Tensor]) -> RowGradients:
        """Pull every row; see :class:`Engine`."""
        jacobian = self._allocate(len(pulls), parameters)
        for _ in written(self._views, pulls, parameters):
            pass
        return RowGradients(jacobian, parameters)

    def _allocate(self, k: int, parameters: Sequence[Tensor]) -> Tensor:
        like = row_like(parameters)
        old, shapes = self._buffer, [p.shape for p in parameters]
        shape = (k, numbers(parameters))
        if old is None or old.shape != shape or old.dtype != like.dtype or old.device != like.device:
            old = self._buffer = like.new_empty(shape)
            self._views = []
        if shapes != self._shapes or not self._views:
            self._views, self._shapes = [split_like(row, parameters) for row in old], shapes
        return old


def written(rows: Iterable[Sequence[Tensor]], pulls: Pulls, parameters: Sequence[Tensor]) -> Iterator[int]:
    """Write the rows one after the other, and yield the number of each as soon as it is complete.

    Args:
        rows: For each row a view in the shape of each parameter. One row may stand for all, if each is used
            before the next.
        pulls: The backward passes.
        parameters: The shared parameters.
    """
    for i, row in enumerate(rows):
        write(row, pulls.pass_of(i)(parameters))
        yield i


def write(row: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Write gradients into the views ``row``, zeros where there is none."""
    there = [
        (view, _real(gradient)) for view, gradient in zip(row, gradients, strict=True) if gradient is not None
    ]
    if len(there) < len(row):
        torch._foreach_zero_([view for view, g in zip(row, gradients, strict=True) if g is None])
    if there:
        torch._foreach_copy_([view for view, _ in there], [gradient for _, gradient in there])


def _real(gradient: Tensor) -> Tensor:
    if gradient.is_complex():
        return torch.view_as_real(gradient.resolve_conj())
    return gradient.to_dense() if gradient.is_sparse else gradient


class SeenGradients(TaskGradients):
    """Shows a combiner some rows of gradients, unscaled, while ``.grad`` stays scaled for the loss scaler.

    Args:
        gradients: All rows, of losses multiplied by ``scale``.
        rows: The numbers of the rows that are shown; ``None`` for all.
        scale: The factor, a scalar tensor; ``None`` for one.
        columns: Returns the Jacobian's columns; most combiners never ask for them.
    """

    def __init__(
        self,
        gradients: TaskGradients,
        rows: Tensor | None,
        scale: Tensor | None,
        columns: Callable[[], "Layout"],
    ) -> None:
        self._gradients = gradients
        self._rows = rows
        self._scale = scale
        self._columns = columns
        self._gramian: Tensor | None = None
        self._k = 0

    @property
    def layout(self) -> Sequence[tuple[str, int]]:  # type: ignore[override]
        """Name and size of each shared parameter in the order of the Jacobian's columns."""
        return self._columns().parameters()

    @property
    def distances(self) -> Sequence[int | None]:  # type: ignore[override]
        """How many operations lie between the losses and each parameter of the layout."""
        return self._columns().distances()

    def gramian(self) -> Tensor:
        """Return the unscaled Gramian, computed once; divided twice, as the square of the scale may overflow."""
        if self._gramian is None:
            gramian = self._gradients.gramian()
            self._k = len(gramian)
            if self._rows is not None:
                gramian = gramian[self._rows][:, self._rows]
            self._gramian = gramian if self._scale is None else gramian / self._scale / self._scale
        return self._gramian

    def combine(self, weights: Tensor) -> None:
        """Add the combination, scaled."""
        if self._rows is not None:
            self.gramian()
            weights = weights.new_zeros(self._k).index_copy_(0, self._rows.to(weights.device), weights)
        self._gradients.combine(weights)

    def jacobian(self) -> Tensor:
        """Return the unscaled Jacobian."""
        jacobian = self._gradients.jacobian()
        jacobian = jacobian if self._rows is None else jacobian[self._rows]
        return jacobian if self._scale is None else jacobian / self._scale

    def assign(self, vector: Tensor) -> None:
        """Add the vector, scaled."""
        self._gradients.assign(vector if self._scale is None else vector * self._scale)

    def poison(self) -> None:
        """Write infinities, so that the loss scaler skips the step and lowers its scale."""
        gramian = self.gramian()
        self._gradients.combine(torch.full((self._k,), torch.inf, dtype=gramian.dtype, device=gramian.device))


def inner_products(rows: Tensor, others: Tensor) -> Tensor:
    """Return the inner products of rows, ``[k, n]``, with others, ``[l, n]``: shape ``[k, l]``.

    A product of matrices adds up each entry's n terms one after the other, so that its rounding error grows with
    n: to 4e-5 in float32 for the millions of parameters of a convolutional trunk. The sum of the sums of blocks
    stays at 1e-7, and for a few rows takes half the time.
    """
    n = rows.shape[1]
    if n <= _SHORT:
        return rows @ others.T
    blocks = n // _BLOCK
    whole = blocks * _BLOCK
    left, right = (part[:, :whole].view(len(part), blocks, _BLOCK).movedim(1, 0) for part in (rows, others))
    return (left @ right.mT).sum(0) + rows[:, whole:] @ others[:, whole:].T


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Return of each tensor whether all its numbers are finite; where they are, the device is waited for once."""
    sums = torch.stack([tensor.sum() for tensor in tensors]).tolist()
    # A sum of finite numbers can overflow, so that one which is not finite proves nothing.
    return [
        math.isfinite(total) or bool(tensor.isfinite().all())
        for total, tensor in zip(sums, tensors, strict=True)
    ]
