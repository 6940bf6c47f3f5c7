"""Which positions belong to which example, and the rows of a weight example by example."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multitask.gradients.operands import Operand
from multitask.gradients.rows import StoredGradients, add_to_gradients

# Numbers that a block of intermediate results may hold.
_CHUNK = 2**24


@dataclass(frozen=True)
class ExampleLayout:
    """How the positions of an operation are numbered.

    Args:
        examples: The number of examples.
        first: Whether the leading positions of one example follow each other; else each position's examples do,
            as the frames of videos that are numbered frame by frame.
        leading: How many leading positions (images, tokens) there are; each may hold several positions (pixels).
    """

    examples: int
    first: bool
    leading: int

    def by_example(self, positions: Tensor, dim: int) -> Tensor:
        """Split dimension ``dim``, of all positions, into examples and the positions of one."""
        each = positions.shape[dim] // self.examples
        if self.first:
            return positions.unflatten(dim, (self.examples, each))
        inner = positions.shape[dim] // self.leading
        split = positions.unflatten(dim, (each // inner, self.examples, inner)).transpose(dim, dim + 1)
        return split.flatten(dim + 1, dim + 2)

    def flat(self, values: Tensor) -> Tensor:
        """Undo :meth:`by_example` for the first two dimensions."""
        if self.first:
            return values.flatten(0, 1)
        inner = values.shape[0] * values.shape[1] // self.leading
        return values.unflatten(1, (-1, inner)).transpose(0, 1).flatten(0, 2)


class ExampleBlock(StoredGradients):
    """Rows ``D_btᵀ A_b`` of one weight: example b, task t; ordered example by example.

    Args:
        operand: ``A``.
        gradients: All ``D_t``, shape ``[m, positions, q]``.
        layout: Which positions belong to which example.
        parameters: The weight.
    """

    def __init__(
        self, operand: Operand, gradients: Tensor, layout: ExampleLayout, parameters: Sequence[Tensor]
    ) -> None:
        super().__init__(parameters)
        self._operand = operand
        self._layout = layout
        # [example, task, position, q]
        self._gradients = layout.by_example(gradients, 1).transpose(0, 1).contiguous()

    def gramian(self) -> Tensor:
        """Return the products of all rows, by whichever way takes fewer operations."""
        b, m, t, q = self._gradients.shape
        p = self._operand.p
        formed = b * m * t * p * q + (b * m) ** 2 * p * q
        paired = (b * t) ** 2 * (m * m * (q + 2) + p)
        return self._formed() if self._operand.dense and formed < paired else self._paired()

    def _paired(self) -> Tensor:
        """``Σ_ss' ⟨D_bts, D_ct's'⟩ ⟨A_bs, A_cs'⟩`` over the positions s of b and s' of c.

        Of inputs far from zero the means are taken out, as in :meth:`ProductBlock.gramian`.
        """
        b, m, t, q = self._gradients.shape
        dtype = self._gradients.dtype
        order = self._layout.by_example(torch.arange(b * t, device=self._gradients.device), 0).flatten()
        mean, kernel, along = self._operand.centred(dtype)
        kernel = kernel[order][:, order].view(b, 1, t, b, 1, t)
        gradients = self._gradients if self._operand.dense else self._merged(kernel)
        D = gradients.reshape(b * m * t, q)
        parts = []
        size = max(1, _CHUNK // max(1, b * (m * t) ** 2))
        for some, near in zip(gradients.split(size), kernel.split(size), strict=True):
            products = (some.reshape(-1, q) @ D.T).view(len(some), m, t, b, m, t)
            parts.append((products * near).sum((2, 5)))
        gramian = torch.cat(parts).reshape(b * m, b * m)
        if mean is None:
            return gramian
        sums = self._gradients.sum(2).reshape(b * m, q)
        moved = torch.einsum("bmsq,bs->bmq", self._gradients, along[order].view(b, t)).reshape(b * m, q)
        cross = moved @ sums.T
        return gramian + cross + cross.T + (mean @ mean) * (sums @ sums.T)

    def _merged(self, kernel: Tensor) -> Tensor:
        """Return gradients added up over the positions of an example with the same input, at the first of them.

        Where they cancel, products of the single ones would leave nothing but rounding.
        """
        same = kernel[:, 0, :, :, 0].diagonal(dim1=0, dim2=2).movedim(-1, 0)
        first = same.tril(-1).sum(2, keepdim=True) == 0
        return (same * first)[:, None] @ self._gradients

    def _formed(self) -> Tensor:
        """Form the rows, some columns at a time."""
        b, m = self._gradients.shape[:2]
        A = self._inputs()
        total = self._gradients.new_zeros(b * m, b * m)
        for D in self._gradients.split(max(1, _CHUNK // max(1, b * m * self._operand.p)), 3):
            rows = torch.einsum("bmsq,bsp->bmqp", D, A).reshape(b * m, -1)
            total += rows @ rows.T
        return total

    def combine(self, weights: Tensor) -> None:
        """Add ``(Σ_t w_bt D_bt)ᵀ A`` over all positions."""
        weights = weights.to(self._gradients).view(self._gradients.shape[:2])
        D = torch.einsum("bm,bmsq->bsq", weights, self._gradients)
        add_to_gradients(self.parameters, [self._operand.product(self._layout.flat(D))])

    def jacobian(self) -> Tensor:
        """Return all ``D_btᵀ A_b``: here they are formed."""
        rows = torch.einsum("bmsq,bsp->bmqp", self._gradients, self._inputs())
        return self._operand.as_weights(rows).flatten(0, 1).flatten(1)

    def _inputs(self) -> Tensor:
        return self._layout.by_example(self._operand.inputs(self._gradients.dtype), 0)
