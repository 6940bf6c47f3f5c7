"""A Jacobian by parameters, each parameter's columns stored in whichever form is small."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from multitask.gradients.operands import Operand
from multitask.gradients.rows import add_to_gradients, inner_products, real_shape, row_like, split_like
from multitask.gradients.task_gradients import TaskGradients


class Block(ABC):
    """The columns of a Jacobian that belong to some of the parameters; k rows.

    Args:
        places: The numbers of the parameters.
    """

    def __init__(self, places: Sequence[int]) -> None:
        self.places = list(places)

    @abstractmethod
    def gramian(self) -> Tensor:
        """Return this block's part of ``J Jᵀ``, shape ``[k, k]``."""

    @abstractmethod
    def combined(self, weights: Tensor) -> Sequence[Tensor]:
        """Return ``weightsᵀ J``, in the shape of each parameter."""

    @abstractmethod
    def rows(self) -> Sequence[Tensor]:
        """Return the columns of each parameter, ``[k, numel]``."""


class StoredBlock(Block):
    """Columns stored as they are.

    Args:
        places: The numbers of the parameters.
        columns: Those of all of them, one after the other, ``[k, n]``.
        parameters: The parameters.
    """

    def __init__(self, places: Sequence[int], columns: Tensor, parameters: Sequence[Tensor]) -> None:
        super().__init__(places)
        self._columns = columns
        self._parameters = parameters

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ`` of the stored columns."""
        return inner_products(self._columns, self._columns)

    def combined(self, weights: Tensor) -> Sequence[Tensor]:
        """Return ``weightsᵀ J`` of the stored columns."""
        return split_like(weights @ self._columns, self._parameters)

    def rows(self) -> Sequence[Tensor]:
        """Return the stored columns."""
        return self._columns.split([real_shape(p).numel() for p in self._parameters], 1)


class ProductBlock(Block):
    """Rows ``D_iᵀ A`` of one weight, which are never formed, and ``D_iᵀ 1`` of the bias beside it.

    ``⟨D_iᵀ A, D_jᵀ A⟩ + ⟨D_iᵀ 1, D_jᵀ 1⟩ = ⟨D_i, (A Aᵀ + 1 1ᵀ) D_j⟩``, and ``Σ w_i D_iᵀ A = (Σ w_i D_i)ᵀ A``.

    Args:
        places: The numbers of the weight and, where it has one, of the bias.
        operand: ``A``.
        gradients: All ``D_i``, shape ``[k, positions, q]``.
    """

    def __init__(self, places: Sequence[int], operand: Operand, gradients: Tensor) -> None:
        super().__init__(places)
        self._operand = operand
        self._gradients = gradients

    def gramian(self) -> Tensor:
        """Return ``⟨D_i, (A Aᵀ + 1 1ᵀ) D_j⟩``."""
        return self._operand.gramian(self._gradients, 1.0 if len(self.places) > 1 else 0.0)

    def combined(self, weights: Tensor) -> Sequence[Tensor]:
        """Return ``(Σ w_i D_i)ᵀ A``, and ``(Σ w_i D_i)ᵀ 1``."""
        _, positions, q = self._gradients.shape
        D = (weights @ self._gradients.flatten(1)).view(positions, q)
        return [self._operand.product(D), D.sum(0)][: len(self.places)]

    def rows(self) -> Sequence[Tensor]:
        """Return all ``D_iᵀ A``, and all ``D_iᵀ 1``: here they are formed."""
        products = torch.stack([self._operand.product(D).flatten() for D in self._gradients])
        return [products, self._gradients.sum(1)][: len(self.places)]

    def formed(self, parameters: Sequence[Tensor]) -> StoredBlock:
        """Return the rows stored as they are, formed by one product.

        Args:
            parameters: The weight and, where it has one, the bias.
        """
        products = self._gradients.mT @ self._operand.inputs(self._gradients.dtype)
        columns = self._operand.as_weights(products).flatten(1)
        if len(self.places) > 1:
            columns = torch.cat([columns, self._gradients.sum(1)], 1)
        return StoredBlock(self.places, columns, parameters)


class BlockGradients(TaskGradients):
    """A Jacobian whose columns are spread over blocks.

    Args:
        blocks: Each parameter is in one of them.
        parameters: The shared parameters, n numbers in all.
    """

    def __init__(self, blocks: Sequence[Block], parameters: Sequence[Tensor]) -> None:
        self._blocks = blocks
        self._parameters = parameters

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``: the blocks' Gramians add up."""
        total = self._blocks[0].gramian()
        for block in self._blocks[1:]:
            total += block.gramian()
        return total

    def combine(self, weights: Tensor) -> None:
        """Add ``weightsᵀ J`` to the gradients of the shared parameters."""
        weights = weights.to(row_like(self._parameters))
        for block in self._blocks:
            add_to_gradients([self._parameters[i] for i in block.places], block.combined(weights))

    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``: every row is formed."""
        columns: dict[int, Tensor] = {}
        for block in self._blocks:
            columns |= dict(zip(block.places, block.rows(), strict=True))
        return torch.cat([columns[i] for i in range(len(self._parameters))], 1)

    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, to the gradients of the shared parameters."""
        add_to_gradients(self._parameters, split_like(vector.clone(), self._parameters))
