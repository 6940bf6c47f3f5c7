"""The exact Gramian without the Jacobian, for the layers where that is cheaper.

Of ``x Wᵀ`` the graph remembers the inputs ``A`` anyway, and a backward pass of row i yields the output gradients
``D_i``. They hold the row ``D_iᵀ A`` of the weight: its products with other rows and its combination with them
need no more than that. So a backward pass a row skips the larger half of itself wherever the positions
(examples, tokens, pixels) are fewer than the weight is wide.
"""

from collections.abc import Sequence

from torch import Tensor

from multitask.gradients.affine import is_bias
from multitask.gradients.batched import pull, stacked
from multitask.gradients.blocks import Block, BlockGradients, ProductBlock, StoredBlock
from multitask.gradients.instances import ExampleRows
from multitask.gradients.losses import Pulls
from multitask.gradients.operands import Operand, operand_of
from multitask.gradients.rows import Rows, real_shape, row_like
from multitask.gradients.taps import Formed, Gatherer, Tap
from multitask.gradients.task_gradients import Engine, TaskGradients
from multitask.gradients.uses import sole_uses

# What writing, copying and reading a number costs, in multiplications of a matrix product.
_MEMORY = 10
# From how many rows on it pays to lay out the patches of a convolution, once for all of them.
_MANY = 6


class Layerwise(Engine):
    """Exact for any graph: factors where the shapes make them cheaper, rows for everything else.

    A layer is treated by its factors only where the graph of this very forward pass shows that its weight
    enters one linear layer, convolution or embedding and nothing else. Everything else (reused and tied
    weights, penalties, hooks, compiled regions, checkpoints, layers of other kinds) gets rows.
    """

    def __init__(self) -> None:
        self._rows = Rows()
        self._gather = Gatherer()
        self._examples = ExampleRows()
        self._all_rows: tuple[object, ...] | None = None
        """Where the last look at the graph said rows for everything. They are right wherever they are used, so
        that it costs speed at most where this looks the same and is not."""

    def differentiate(self, pulls: Pulls, parameters: Sequence[Tensor]) -> TaskGradients:
        """Pull every row; see :class:`Engine`."""
        if not parameters:
            return self._rows.differentiate(pulls, parameters)
        k = len(pulls)
        where = (k, len(parameters), len(pulls.graph.reaching))
        if where == self._all_rows:
            return self._rows.differentiate(pulls, parameters)
        uses = sole_uses(pulls.graph, parameters)
        found = self._examples.differentiate(pulls, parameters, uses)
        if found is not None:
            return found
        known = {i: use for i, use in enumerate(uses) if use is not None}
        operands = {
            i: operand
            for i, use in known.items()
            if (operand := operand_of(use, parameters[i].shape)) is not None
        }
        cheaper = {i for i, operand in operands.items() if _is_cheaper(operand, k)}
        together = None
        if all(p.ndim < 2 or i in operands for i, p in enumerate(parameters)):
            together = stacked(pulls, parameters)
        if together is None:
            operands = {
                i: operand
                for i, operand in operands.items()
                if i in cheaper or (operand.wasteful and k >= _MANY)
            }
        if not operands:
            self._all_rows = where
            return self._rows.differentiate(pulls, parameters)

        # Where rows flow one by one, those of some weights are formed as soon as a row is complete.
        at_once = [i for i in operands if i not in cheaper] if together is None else []
        biases = {
            use.node: i
            for i, use in known.items()
            if is_bias(use, parameters[i].shape) and any(use.node is known[j].node for j in operands)
        }
        places = {i: [i, biases[known[i].node]] if known[i].node in biases else [i] for i in operands}
        apart = {*operands, *biases.values()}
        leaves = [i for i in range(len(parameters)) if i not in apart]
        nodes = [known[i].node for i in operands]
        like = row_like(parameters)
        with Tap(nodes, [parameters[i] for i in leaves]).open() as tap:
            gathered = None if together is None else pull(tap, *together, like.dtype)
            if gathered is None:
                formed = {
                    slot: Formed(operand, [parameters[place].shape for place in places[i]])
                    for slot, (i, operand) in enumerate(operands.items())
                    if i in at_once
                }
                gathered = self._gather(tap, pulls, like, formed)

        blocks: list[Block] = []
        if gathered.stored is not None:
            stored = [*leaves, *(place for i in at_once for place in places[i])]
            blocks.append(StoredBlock(stored, gathered.stored, [parameters[i] for i in stored]))
        for slot, (i, operand) in enumerate(operands.items()):
            if i in at_once:
                continue
            # Taken out, so that what is formed to rows is not held any longer.
            gradients, gathered.at_nodes[slot] = gathered.at_nodes[slot], None
            here = [parameters[place] for place in places[i]]
            if gradients is None:
                nothing = like.new_zeros(k, sum(real_shape(p).numel() for p in here))
                blocks.append(StoredBlock(places[i], nothing, here))
                continue
            block = ProductBlock(places[i], operand, operand.matrix(gradients))
            blocks.append(block if i in cheaper else block.formed(here))
            del block, gradients
        return BlockGradients(blocks, parameters)


def _is_cheaper(operand: Operand, k: int) -> bool:
    """Return whether a layer's factors take fewer operations than its k rows."""
    n, p, q = operand.positions, operand.p, operand.q
    row = n * p * q if operand.dense else 0
    rows = k * row + (k * k + k) * p * q + 3 * _MEMORY * k * p * q
    kernel = n * n * p if operand.dense else 0
    factors = kernel + k * n * n * q + k * k * n * q + row + _MEMORY * (n * n + n * p + 3 * k * n * q)
    return factors < rows
