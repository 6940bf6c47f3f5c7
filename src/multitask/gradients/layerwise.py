"""The exact Gramian without the Jacobian, for the layers where that is cheaper.

The graph of ``x Wᵀ`` keeps the inputs ``A``, and a backward pass of row i yields the output gradients ``D_i``. These
are enough for the products of rows ``D_iᵀ A`` and for their combination. Wherever positions (examples, tokens, pixels)
are fewer than the weight is wide, each backward pass skips its larger half.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from multitask.gradients.affine import is_bias
from multitask.gradients.batched import pull, stacked
from multitask.gradients.blocks import BlockGradients, ProductBlock
from multitask.gradients.examples import rows_of_examples
from multitask.gradients.exchange import Exchange
from multitask.gradients.factors import Factors, Layer, is_cheaper
from multitask.gradients.losses import Pulls
from multitask.gradients.operands import OPERATIONS, operand_of
from multitask.gradients.rows import Rows, StoredGradients, multiplied, row_like, widened
from multitask.gradients.taps import Gatherer, Place, Tap, TappedPulls, form
from multitask.gradients.task_gradients import MicroBatch
from multitask.gradients.uses import sole_uses

# With at least so many rows, laying out the patches of a convolution once for all of them saves time.
_MANY = 6


class Layerwise(Rows):
    """Exact for any graph: factors where the shapes make them cheaper, rows for everything else.

    A weight has factors only if the graph of this step shows that it enters one linear layer, convolution or
    embedding and nothing else. Reused and tied weights, penalties, hooks, compiled regions, checkpoints and other
    layers get rows.

    Factors of micro-batches are concatenated as long as that is cheaper; then rows are formed, and those of further
    micro-batches are added to them.
    """

    def __init__(self) -> None:
        self._gather = Gatherer()
        self._all_rows: tuple[object, ...] | None = None
        """The shapes of a graph for which rows are best throughout; a graph that only looks the same costs speed."""
        self._memory: dict[Tensor, Tensor] = {}
        self._kept: dict[Tensor, Factors] = {}
        """The factors of each weight that has no rows."""
        self._examples: BlockGradients | None = None
        self._order: Sequence[Tensor] = []
        super().__init__()

    def clear(self) -> None:
        self._memory |= {p: found.memory for p, found in self._kept.items() if found.memory is not None}
        # On a CPU, freeing and allocating memory is slow: the next step reuses what this one leaves.
        on_cpu = any(p.device.type == "cpu" for p in self._order)
        self._before = (self._kept, self._examples) if on_cpu else None
        self._kept, self._examples, self._micro_batches = {}, None, 0
        self._exchange: Exchange | None = None
        super().clear()

    def lay_out(self, parameters: Sequence[Tensor], moved: Iterable[tuple[int, Tensor, Tensor]]) -> None:
        """Add columns for what has become shared and has a gradient already; see :class:`Engine`."""
        if self._micro_batches:
            rows = list(moved)
            have = {*self._parameters, *(p for _, p, _ in rows)}
            super().lay_out([p for p in parameters if p in have], rows)

    def gradients(self, rows: Sequence[int], factors: Sequence[float]) -> StoredGradients:
        if self._examples is not None:
            return self._examples
        if not self._kept:
            return super().gradients(rows, factors)
        blocks = [super().gradients(rows, factors)] if self._parameters else []
        if self._exchange is not None:
            blocks.append(self._exchange.products(self._kept, rows))
        else:
            for found in self._kept.values():
                D = multiplied(found.chosen(rows), factors)
                blocks.append(ProductBlock(found.operand, D, found.parameters))
        return BlockGradients(blocks, self._order)

    def add(self, batch: MicroBatch) -> None:
        pulls, parameters, weights, factors, _, alone = batch
        rows_throughout = not parameters or self._look(pulls, parameters) == self._all_rows
        if alone and rows_throughout:
            super().add(batch)
            return
        self._order = parameters
        if pulls.losses.of_examples:
            uses = sole_uses(pulls.graph, parameters)
            self._examples = rows_of_examples(pulls, parameters, uses, self._gather)
            if self._examples is not None:
                return
        k = len(pulls.rows) or len(weights)
        layers = {} if rows_throughout else _layers(pulls, parameters)
        kept = cheaper = {p: layer for p, layer in layers.items() if self._is_kept(layer, k)}
        if factors is not None:
            self._exchange = Exchange(kept, self._kept, parameters, len(weights))
            kept = {p: layer for p, layer in kept.items() if p in self._exchange.weights}
        together = None
        if layers and all(p.ndim < 2 or p in layers for p in parameters):
            together = stacked(pulls, parameters, self._gather)
        formed = {
            p: layer
            for p, layer in layers.items()
            if p not in kept
            and (together is not None or (layer.operand.wasteful and len(pulls.rows) >= _MANY))
        }
        if not cheaper and not formed and not self._micro_batches:
            self._all_rows = self._look(pulls, parameters)

        apart = {p for layer in kept.values() for p in layer.parameters}
        rest = [p for p in parameters if p not in apart]
        super().lay_out(rest, self._spilled(kept))
        self._micro_batches += 1
        like = row_like(parameters)
        tapped = [*kept.values(), *formed.values()] if pulls.rows else []
        apart |= {p for layer in formed.values() for p in layer.parameters}
        for p, layer in kept.items():
            if p not in self._kept:
                self._kept[p] = Factors(layer.operand, layer.parameters, self._memory.pop(p, None))
            self._kept[p].begin(layer.operand, weights, like if alone else widened(like), alone)
        with Tap([layer.node for layer in tapped], [p for p in parameters if p not in apart]).open() as tap:
            found = None if together is None else pull(tap, *together, like.dtype)
            places: list[Place] = [self._kept[p].take for p in kept]
            places += [self._forming(layer, like, found is None) for layer in formed.values()]
            sources = TappedPulls(pulls, tap, places, found) if tapped else pulls
            super().add(batch._replace(pulls=sources, parameters=rest, factors=factors if rest else None))
        for held in self._kept.values():
            held.end(factors)

    def _look(self, pulls: Pulls, parameters: Sequence[Tensor]) -> tuple[object, ...]:
        # These shapes decide between factors and rows: a resumed run, which remembers nothing, must choose the same.
        layers = [node for node in pulls.graph.reaching if type(node).__name__ in OPERATIONS]
        shapes = [node._input_metadata[0].shape for node in layers]
        return len(pulls.rows), len(parameters), shapes

    def _is_kept(self, layer: Layer, k: int) -> bool:
        """Return whether a layer, which must have no rows in this step so far, gets factors."""
        operand, (weight, *_) = layer.operand, layer.parameters
        before, positions = self._kept.get(weight), operand.positions
        if before is not None:
            # Their positions can only be appended to those of the same operation.
            same = [*map(id, before.parameters)] == [*map(id, layer.parameters)]
            if not same or before.operand.kind != operand.kind:
                return False
            positions += before.positions
        elif self._begun and not set(self._parameters).isdisjoint(layer.parameters):
            return False
        return is_cheaper(operand, k, positions, self._micro_batches + 1)

    def _spilled(self, kept: Mapping[Tensor, object]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Form and yield the rows of weights whose factors are no longer kept."""
        for weight in [p for p in self._kept if p not in kept]:
            yield from self._kept.pop(weight).formed()

    def _forming(self, layer: Layer, like: Tensor, one_by_one: bool) -> Place:
        operand, inputs = layer.operand, None
        if one_by_one:
            # Allocating memory in each step takes longer than filling it.
            name, shape = ("inputs", id(layer.parameters[0])), (operand.positions, operand.p)
            inputs = operand.inputs(like.dtype, self._gather.buffer(name, shape, like))
        return partial(form, operand, layer.parameters, inputs)


def _layers(pulls: Pulls, parameters: Sequence[Tensor]) -> dict[Tensor, Layer]:
    """Return the layers that can have factors, by weight."""
    each = zip(parameters, sole_uses(pulls.graph, parameters), strict=True)
    uses = [(p, use) for p, use in each if use is not None]
    biases = {use.node: [p] for p, use in uses if is_bias(use, p.shape)}
    return {
        p: Layer(operand, use.node, [p, *biases.get(use.node, [])])
        for p, use in uses
        if (operand := operand_of(use, p.shape)) is not None
    }
