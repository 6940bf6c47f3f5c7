"""The exact Gramian without the Jacobian, for the layers where that is cheaper.

Of ``x Wᵀ`` the graph remembers the inputs ``A`` anyway, and a backward pass of row i yields the output gradients
``D_i``. They hold the row ``D_iᵀ A`` of the weight: its products with other rows and its combination with them
need no more than that. So one backward pass per row skips the larger half of itself wherever the positions
(examples, tokens, pixels) are fewer than the weight is wide.
"""

from collections.abc import Sequence

from torch import Tensor

from multitask.gradients.affine import is_bias
from multitask.gradients.batched import pull, stacked
from multitask.gradients.blocks import BlockGradients, ProductBlock
from multitask.gradients.instances import rows_of_examples
from multitask.gradients.losses import Pulls
from multitask.gradients.operands import Operand, operand_of
from multitask.gradients.rows import RowGradients, Rows, StoredGradients, numbers, row_like
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
        self._all_rows: tuple[object, ...] | None = None
        """The shape of a graph for which rows are best throughout. They are right wherever they are used, so
        that it costs speed at most where this looks the same and is not."""

    def differentiate(self, pulls: Pulls, parameters: Sequence[Tensor]) -> TaskGradients:
        """Pull every row; see :class:`Engine`."""
        k = len(pulls.rows)
        where = (k, len(parameters), len(pulls.graph.reaching))
        if not parameters or where == self._all_rows:
            return self._rows.differentiate(pulls, parameters)
        uses = sole_uses(pulls.graph, parameters)
        found = rows_of_examples(pulls, parameters, uses, self._gather)
        if found is not None:
            return found
        known = {p: use for p, use in zip(parameters, uses, strict=True) if use is not None}
        all_operands = {p: operand_of(use, p.shape) for p, use in known.items()}
        operands = {p: operand for p, operand in all_operands.items() if operand is not None}
        cheaper = {p for p, operand in operands.items() if _is_cheaper(operand, k)}
        together = None
        if all(p.ndim < 2 or p in operands for p in parameters):
            together = stacked(pulls, parameters, self._gather)
        if together is None:
            wasteful = {p for p, operand in operands.items() if operand.wasteful and k >= _MANY}
            operands = {p: operand for p, operand in operands.items() if p in cheaper | wasteful}
        if not operands:
            self._all_rows = where
            return self._rows.differentiate(pulls, parameters)

        nodes = [known[weight].node for weight in operands]
        biases = {use.node: p for p, use in known.items() if use.node in nodes and is_bias(use, p.shape)}
        owned = [
            [p, biases[node]] if node in biases else [p] for p, node in zip(operands, nodes, strict=True)
        ]
        apart = {p for here in owned for p in here}
        leaves = [p for p in parameters if p not in apart]
        like = row_like(parameters)
        with Tap(nodes, leaves).open() as tap:
            gathered = None if together is None else pull(tap, *together, like.dtype)
            # Where rows flow one by one, those of some weights are formed as soon as a row is complete.
            formed: dict[int, Formed] = {}
            if gathered is None:
                each = enumerate(zip(operands.items(), owned, strict=True))
                formed = {
                    slot: Formed(operand, here)
                    for slot, ((p, operand), here) in each
                    if together is None and p not in cheaper
                }
                passes = [pulls.pass_of(row) for row in pulls.rows]
                gathered = self._gather(tap, passes, like, formed)

        blocks: list[StoredGradients] = [RowGradients(gathered.stored, leaves)] if leaves else []
        for slot, ((weight, operand), here) in enumerate(zip(operands.items(), owned, strict=True)):
            # Taken out, so that what is formed to rows is not held any longer.
            gradients = gathered.at_nodes.pop(0)
            if gradients is None:
                blocks.append(RowGradients(like.new_zeros(k, numbers(here)), here))
            elif slot in formed:
                blocks.append(RowGradients(gradients, here))
            else:
                block = ProductBlock(operand, operand.matrix(gradients), here)
                blocks.append(block if weight in cheaper else RowGradients(block.jacobian(), here))
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
