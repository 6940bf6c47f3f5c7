"""A Jacobian by parameters, the columns of each stored in whichever form is small."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multitask.gradients.operands import Operand
from multitask.gradients.rows import StoredGradients, add_to_gradients, real_shape


class ProductBlock(StoredGradients):
    """Rows ``D_iᵀ A`` of one weight, which are never formed, and ``D_iᵀ 1`` of the bias beside it.

    ``⟨D_iᵀ A, D_jᵀ A⟩ + ⟨D_iᵀ 1, D_jᵀ 1⟩ = ⟨D_i, (A Aᵀ + 1 1ᵀ) D_j⟩``, and ``Σ w_i D_iᵀ A = (Σ w_i D_i)ᵀ A``.

    Args:
        operand: ``A``.
        gradients: All ``D_i``, shape ``[k, positions, q]``.
        parameters: The weight and, where it has one, the bias.
    """

    def __init__(self, operand: Operand, gradients: Tensor, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self.operand = operand
        self.k = len(gradients)
        self._gradients = gradients

    def gramian(self) -> Tensor:
        """Return ``⟨D_i, (A Aᵀ + 1 1ᵀ) D_j⟩``."""
        return self.operand.gramian(self._gradients, 1.0 if len(self.parameters) > 1 else 0.0)

    def combine(self, weights: Tensor) -> None:
        """Add ``(Σ w_i D_i)ᵀ A``, and ``(Σ w_i D_i)ᵀ 1``."""
        add_to_gradients(self.parameters, self.combined(weights))

    def combined(self, weights: Tensor) -> list[Tensor]:
        """Return the combination, one tensor per parameter."""
        D = (weights.to(self._gradients) @ self._gradients.flatten(1)).view(self._gradients.shape[1:])
        return [self.operand.product(D), D.sum(0)][: len(self.parameters)]

    def formed(self) -> list[Tensor]:
        """Return all ``D_iᵀ A``, and all ``D_iᵀ 1``, ``[k, *shape]``: here the rows are formed."""
        return [self.operand.products(self._gradients), self._gradients.sum(1)][: len(self.parameters)]

    def jacobian(self) -> Tensor:
        """Return the rows, shape ``[k, n]``."""
        return torch.cat([rows.flatten(1) for rows in self.formed()], 1)


class BlockGradients(StoredGradients):
    """A Jacobian whose columns are spread over blocks.

    Args:
        blocks: Each parameter is in one of them.
        parameters: The shared parameters, n numbers in all.
    """

    def __init__(self, blocks: Sequence[StoredGradients], parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters)
        self._blocks = blocks
        self.fresh = any(block.fresh for block in blocks)

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``: the blocks' Gramians add up."""
        total = self._blocks[0].gramian()
        for block in self._blocks[1:]:
            total = total + block.gramian()
        return total

    def combine(self, weights: Tensor) -> None:
        """Add ``weightsᵀ J`` to the gradients of the shared parameters."""
        for block in self._blocks:
            block.combine(weights)

    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``: every row is formed."""
        columns: dict[Tensor, Tensor] = {}
        for block in self._blocks:
            sizes = [real_shape(p).numel() for p in block.parameters]
            columns |= zip(block.parameters, block.jacobian().split(sizes, 1), strict=True)
        return torch.cat([columns[p] for p in self.parameters], 1)
