"""A Jacobian in blocks of columns, some stored as the factors of products."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from multitask.gradients.operands import Operand
from multitask.gradients.rows import StoredGradients, add_to_gradients, real_shape


class ProductBlock(StoredGradients):
    """Rows ``D_iᵀ A`` of a weight and ``D_iᵀ 1`` of its bias, which are not formed.

    Args:
        operand: ``A``, ``[positions, p]``.
        gradients: All ``D_i``, ``[k, positions, q]``.
        parameters: The weight and, if the operation has one, the bias.
    """

    def __init__(self, operand: Operand, gradients: Tensor, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self.operand = operand
        self.gradients = gradients

    def gramian(self) -> Tensor:
        """Return ``⟨D_i, (A Aᵀ + 1 1ᵀ) D_j⟩``."""
        return self.operand.gramian(self.gradients, 1.0 if len(self.parameters) > 1 else 0.0)

    def combine(self, weights: Tensor) -> None:
        """Add ``(Σ w_i D_i)ᵀ A`` and ``(Σ w_i D_i)ᵀ 1``."""
        add_to_gradients(self.parameters, self.combined(weights))

    def combined(self, weights: Tensor) -> list[Tensor]:
        """Return the combination of the rows, one tensor per parameter."""
        D = (weights.to(self.gradients) @ self.gradients.flatten(1)).view(self.gradients.shape[1:])
        return self.operand.gradients(D, self.parameters)

    def jacobian(self) -> Tensor:
        each = self.operand.gradients(self.gradients, self.parameters)
        return torch.cat([rows.flatten(1) for rows in each], 1)


class BlockGradients(StoredGradients):
    """A Jacobian whose columns are divided into blocks, which together have those of all parameters."""

    def __init__(self, blocks: Sequence[StoredGradients], parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._blocks = blocks

    def gramian(self) -> Tensor:
        return reduce(torch.add, [block.gramian() for block in self._blocks])

    def combine(self, weights: Tensor) -> None:
        for block in self._blocks:
            block.combine(weights)

    def jacobian(self) -> Tensor:
        columns: dict[Tensor, Tensor] = {}
        for block in self._blocks:
            sizes = [real_shape(p).numel() for p in block.parameters]
            columns |= zip(block.parameters, block.jacobian().split(sizes, 1), strict=True)
        return torch.cat([columns[p] for p in self.parameters], 1)
