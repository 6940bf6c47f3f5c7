"""The exact Gramian without the Jacobian, for the layers where that is cheaper.

Of ``x Wᵀ`` the graph remembers the inputs ``A`` anyway, and a backward pass of row i yields the output gradients
``D_i``. They hold the row ``D_iᵀ A`` of the weight: its products with other rows and its combination with them
need no more than that. So a backward pass a row skips the larger half of itself wherever the positions
(examples, tokens, pixels) are fewer than the weight is wide.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from multitask.autodiff.affine import is_bias
from multitask.autodiff.batched import pull, stacked
from multitask.autodiff.blocks import Block, BlockGradients, ProductBlock, StoredBlock
from multitask.autodiff.gradients import Cotangents, Engine, TaskGradients
from multitask.autodiff.instances import ExampleRows
from multitask.autodiff.operands import Operand, operand_of
from multitask.autodiff.rows import Rows
from multitask.autodiff.sweep import Roots, Sweep, Tap
from multitask.autodiff.uses import sole_uses

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
            i: operand
            for i, use in known.items()
            if (operand := operand_of(use, parameters[i].shape)) is not None
        }
        cheaper = {i for i, operand in operands.items() if _is_cheaper(operand, k)}
        together = None
        if not penalties and all(p.ndim < 2 or i in operands for i, p in enumerate(parameters)):
            together = stacked(outputs, cotangents)
        if together is None:
            operands = {i: operand for i, operand in operands.items() if i in cheaper}
        if not operands:
            return self._rows.differentiate(outputs, cotangents, parameters, direct)

        biases = {
            use.node: i
            for i, use in known.items()
            if is_bias(use, parameters[i].shape) and any(use.node is known[j].node for j in operands)
        }
        apart = {*operands, *biases.values()}
        plain = [i for i in range(len(parameters)) if i not in apart]
        leaves = [parameters[i] for i in plain]
        nodes = [known[i].node for i in operands]
        dtype = parameters[0].dtype
        with Tap(nodes, leaves).open() as tap:
            piles = None if together is None else pull(tap, outputs, together, dtype)
            if piles is None:
                piles = self._sweep(tap, _roots(outputs, cotangents, direct), k, dtype)

        blocks: list[Block] = []
        if piles.of_leaves is not None:
            blocks.append(StoredBlock(plain, piles.of_leaves, leaves))
        for (i, operand), pile in zip(operands.items(), piles.at_nodes, strict=True):
            places = [i, biases[known[i].node]] if known[i].node in biases else [i]
            here = [parameters[place] for place in places]
            if pile is None:
                nothing = here[0].new_zeros(k, sum(p.numel() for p in here))
                blocks.append(StoredBlock(places, nothing, here))
                continue
            block = ProductBlock(places, operand, operand.matrix(pile))
            blocks.append(block if i in cheaper else block.formed(here))
        return BlockGradients(blocks, parameters)


def _roots(
    outputs: Sequence[Tensor], cotangents: Cotangents, direct: Sequence[Tensor | None]
) -> Iterator[Roots]:
    for row, gradients in enumerate(cotangents.rows()):
        roots = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
        if row < len(direct) and (penalty := direct[row]) is not None:
            roots.append((penalty, torch.ones_like(penalty)))
        yield roots


def _is_cheaper(operand: Operand, k: int) -> bool:
    """Return whether a layer's factors take fewer operations than its k rows."""
    n, p, q = operand.positions, operand.p, operand.q
    row = n * p * q if operand.dense else 0
    rows = k * row + (k * k + k) * p * q + 3 * _MEMORY * k * p * q
    kernel = n * n * p if operand.dense else 0
    factors = kernel + k * n * n * q + k * k * n * q + row + _MEMORY * (n * n + n * p + 3 * k * n * q)
    return factors < rows
