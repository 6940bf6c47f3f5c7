"""The exact Gramian without the Jacobian, for the layers where that is cheaper.

Of ``x Wᵀ`` the graph remembers the inputs ``A`` anyway, and a backward pass of row i yields the output gradients
``D_i``. They hold the row ``D_iᵀ A`` of the weight: its products with other rows and its combination with them
need no more than that. So a backward pass a row skips the larger half of itself wherever the positions
(examples, tokens, pixels) are fewer than the weight is wide.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from multitask.autodiff.affine import is_bias, shift_columns
from multitask.autodiff.blocks import Block, BlockGradients, ProductBlock, StoredBlock, ZeroBlock
from multitask.autodiff.gradients import Cotangents, Engine, TaskGradients
from multitask.autodiff.instances import ExampleRows
from multitask.autodiff.operands import Operand, operand_of
from multitask.autodiff.rows import Rows
from multitask.autodiff.sweep import Roots, Sweep, Tap
from multitask.autodiff.uses import Use, sole_uses

# What writing, copying and reading a number costs, in multiplications of a matrix product.
_MEMORY = 10


class Layerwise(Engine):
    """Exact for any trunk: factors where the shapes make them cheaper, rows for everything else.

    A layer is treated by its factors only where the graph of this very forward pass shows that its weight
    enters one linear layer, convolution or embedding and nothing else. Whatever else there is (reused and
    tied weights, penalties, hooks, compiled regions, checkpoints, layers of other kinds) gets rows.
    """

    def __init__(self) -> None:
        self._rows = Rows()
        self._sweep = Sweep()
        self._examples = ExampleRows()

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        cotangents: Cotangents,
        parameters: Sequence[nn.Parameter],
        direct: Sequence[Tensor | None] = (),
    ) -> TaskGradients:
        """Pull the cotangents back through the trunk; see :class:`Engine`."""
        penalties = [loss for loss in direct if loss is not None]
        uses = sole_uses([*outputs, *penalties], parameters)
        if not penalties:
            found = self._examples.differentiate(outputs, cotangents, parameters, uses)
            if found is not None:
                return found
        k = len(cotangents)
        known = {i: use for i, use in enumerate(uses) if use is not None}
        operands = {
            i: operand for i, use in known.items() if (operand := _cheaper(use, parameters[i], k)) is not None
        }
        if not operands:
            return self._rows.differentiate(outputs, cotangents, parameters, direct)

        slots = {known[i].node: slot for slot, i in enumerate(operands)}
        biases = {
            i: use for i, use in known.items() if use.node in slots and is_bias(use, parameters[i].shape)
        }
        plain = [i for i in range(len(parameters)) if i not in operands and i not in biases]
        with Tap(list(slots), [parameters[i] for i in plain]).open() as tap:
            piles = self._sweep(tap, _roots(outputs, cotangents, direct), k, parameters[0].dtype)

        blocks: list[Block] = [ZeroBlock(k, p) for p in parameters]
        for i, pile in zip(plain, piles[len(slots) :], strict=True):
            if pile is not None:
                blocks[i] = StoredBlock(pile)
        for i, operand in operands.items():
            if (pile := piles[slots[known[i].node]]) is not None:
                blocks[i] = ProductBlock(operand, operand.matrix(pile))
        for i, use in biases.items():
            if (pile := piles[slots[use.node]]) is not None:
                blocks[i] = StoredBlock(shift_columns(use, pile).sum(1))
        return BlockGradients(blocks, parameters)


def _roots(
    outputs: Sequence[Tensor], cotangents: Cotangents, direct: Sequence[Tensor | None]
) -> Iterator[Roots]:
    for row, gradients in enumerate(cotangents.rows()):
        roots = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
        if row < len(direct) and (penalty := direct[row]) is not None:
            roots.append((penalty, torch.ones_like(penalty)))
        yield roots


def _cheaper(use: Use, parameter: nn.Parameter, k: int) -> Operand | None:
    """Return the inputs of a layer whose factors take fewer operations than its k rows."""
    operand = operand_of(use, parameter.shape)
    if operand is None:
        return None
    n, p, q = operand.positions, operand.p, operand.q
    row = n * p * q if operand.dense else 0
    rows = k * row + (k * k + k) * p * q + 3 * _MEMORY * k * p * q
    kernel = n * n * p if operand.dense else 0
    factors = kernel + k * n * n * q + k * k * n * q + row + _MEMORY * (n * n + n * p + 3 * k * n * q)
    return operand if factors < rows else None
