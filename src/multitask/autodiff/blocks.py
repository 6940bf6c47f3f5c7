"""A Jacobian by parameters, each parameter's columns stored in whichever form is small."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multitask.autodiff.gradients import TaskGradients
from multitask.autodiff.operands import Operand
from multitask.autodiff.rows import add_to_gradients, split_like


class Block(ABC):
    """The columns of a Jacobian that belong to one parameter; k rows."""

    @abstractmethod
    def gramian(self) -> Tensor:
        """Return this block's part of ``J Jᵀ``, shape ``[k, k]``."""

    @abstractmethod
    def combined(self, weights: Tensor) -> Tensor:
        """Return ``weightsᵀ J`` in the shape of the parameter."""

    @abstractmethod
    def rows(self) -> Tensor:
        """Return the columns, ``[k, numel]``."""


class StoredBlock(Block):
    """Columns stored as they are, ``[k, *parameter.shape]``."""

    def __init__(self, columns: Tensor) -> None:
        self._columns = columns

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ`` of the stored columns."""
        return self.rows() @ self.rows().T

    def combined(self, weights: Tensor) -> Tensor:
        """Return ``weightsᵀ J`` of the stored columns."""
        return torch.tensordot(weights, self._columns, 1)

    def rows(self) -> Tensor:
        """Return the stored columns."""
        return self._columns.flatten(1) if self._columns.ndim > 1 else self._columns[:, None]


class ZeroBlock(Block):
    """Columns of a parameter that no row reaches."""

    def __init__(self, k: int, parameter: nn.Parameter) -> None:
        self._k = k
        self._parameter = parameter

    def gramian(self) -> Tensor:
        """Return zeros, ``[k, k]``."""
        return self._parameter.new_zeros(self._k, self._k)

    def combined(self, weights: Tensor) -> Tensor:
        """Return zeros in the shape of the parameter."""
        return torch.zeros_like(self._parameter)

    def rows(self) -> Tensor:
        """Return zeros, ``[k, numel]``."""
        return self._parameter.new_zeros(self._k, self._parameter.numel())


class ProductBlock(Block):
    """Rows ``D_iᵀ A`` of one weight, which are never formed.

    ``⟨D_iᵀ A, D_jᵀ A⟩ = ⟨D_i, A Aᵀ D_j⟩``, and ``Σ w_i D_iᵀ A = (Σ w_i D_i)ᵀ A``.

    Args:
        operand: ``A``.
        gradients: All ``D_i``, shape ``[k, positions, q]``.
    """

    def __init__(self, operand: Operand, gradients: Tensor) -> None:
        self._operand = operand
        self._gradients = gradients

    def gramian(self) -> Tensor:
        """Return ``⟨D_i, A Aᵀ D_j⟩``."""
        seen = self._operand.kernel(self._gradients.dtype) @ self._gradients
        return self._gradients.flatten(1) @ seen.flatten(1).T

    def combined(self, weights: Tensor) -> Tensor:
        """Return ``(Σ w_i D_i)ᵀ A``."""
        return self._operand.product(torch.tensordot(weights, self._gradients, 1))

    def rows(self) -> Tensor:
        """Return all ``D_iᵀ A``: here they are formed."""
        return torch.stack([self._operand.product(D).flatten() for D in self._gradients])


class BlockGradients(TaskGradients):
    """A Jacobian whose columns are spread over blocks.

    Args:
        blocks: One for each parameter.
        parameters: The shared parameters, n numbers in all.
    """

    def __init__(self, blocks: Sequence[Block], parameters: Sequence[nn.Parameter]) -> None:
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
        weights = weights.to(self._parameters[0].dtype)
        add_to_gradients(self._parameters, [block.combined(weights) for block in self._blocks])

    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``: every row is formed."""
        return torch.cat([block.rows() for block in self._blocks], 1)

    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, to the gradients of the shared parameters."""
        add_to_gradients(self._parameters, split_like(vector, self._parameters))
