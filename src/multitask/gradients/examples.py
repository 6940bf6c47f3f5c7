"""The rows of all examples from one backward pass per task, if the model treats examples independently.

The gradients that propagate for all examples at once are then those of single examples, side by side. Independence is
tested in every step: two more passes, in the second of which each example's losses are multiplied by another power of
two, show whether gradients of examples mix, and which positions of an operation belong to which example. (A large
batch takes three passes, with two factors per example.)
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from multitask.gradients.affine import affine_terms, shape_at_position
from multitask.gradients.blocks import BlockGradients
from multitask.gradients.graph import Node
from multitask.gradients.losses import Pulls, gradients_at
from multitask.gradients.operands import Operand, operand_of
from multitask.gradients.rows import RowGradients, StoredGradients, add_to_gradients, row_like
from multitask.gradients.taps import Gatherer, Tap
from multitask.gradients.uses import Use

# The number of elements of intermediate results that are computed at a time.
_CHUNK = 2**24
# The number of factors: powers of two of both signs, from 2⁻³² on, and in half precision from 2⁻⁴ on.
_WIDE, _NARROW = 128, 16


class ExampleLayout(NamedTuple):
    """The order of an operation's positions, ``[runs, examples, positions of a run]``.

    One run if each example's positions are adjacent, several if examples are interleaved, as in ``[tokens, batch]``.
    """

    runs: int
    examples: int

    def by_example(self, positions: Tensor, dim: int) -> Tensor:
        """Split a dimension of all positions into two, the examples and the positions of each."""
        split = positions.unflatten(dim, (*self, -1))
        return split.transpose(dim, dim + 1).flatten(dim + 1, dim + 2)


class ExampleBlock(StoredGradients):
    """Rows ``D_btᵀ A_b`` of a weight for example b and task t, ordered by example.

    Args:
        operand: ``A``, ``[positions, p]``.
        gradients: The output gradients of all tasks, ``[m, *output]``.
        layout: The order of the positions.
        weight: The weight.
    """

    def __init__(self, operand: Operand, gradients: Tensor, layout: ExampleLayout, weight: Tensor) -> None:
        super().__init__([weight])
        self._operand = operand.on(layout.by_example(operand.stored, 0).flatten(0, 1))
        # [b, m, t, q]: example, task, position of the example, column
        self._gradients = layout.by_example(operand.matrix(gradients), 1).transpose(0, 1).contiguous()

    def gramian(self) -> Tensor:
        """Return the Gramian, computed the way that takes fewer operations."""
        b, m, t, q = self._gradients.shape
        p = self._operand.p
        formed = b * m * t * p * q + (b * m) ** 2 * p * q
        paired = (b * t) ** 2 * (m * m * (q + 2) + p)
        return self._formed() if self._operand.dense and formed < paired else self._paired()

    def _paired(self) -> Tensor:
        """``Σ_ss' ⟨D_bts, D_ct's'⟩ ⟨A_bs, A_cs'⟩`` over positions s of b and s' of c; see :meth:`Operand.gramian`."""
        b, m, t, q = self._gradients.shape
        kernel, centring = self._operand.centred_kernel(self._gradients.dtype)
        kernel = kernel.view(b, 1, t, b, 1, t)
        gradients = self._gradients
        if not self._operand.dense:
            # Gradients at equal inputs are summed at the first position: if they cancel, products of single positions
            # would leave only rounding errors.
            same = kernel[:, 0, :, :, 0].diagonal(dim1=0, dim2=2).movedim(-1, 0)
            first = same.tril(-1).sum(2, keepdim=True) == 0
            gradients = (same * first)[:, None] @ gradients
        size = max(1, _CHUNK // max(1, b * (m * t) ** 2))
        parts = [
            (torch.tensordot(some, gradients, ([3], [3])) * near).sum((2, 5))
            for some, near in zip(gradients.split(size), kernel.split(size), strict=True)
        ]
        gramian = torch.cat(parts).reshape(b * m, b * m)
        if centring is None:
            return gramian
        mean, along = centring
        sums = self._gradients.sum(2).reshape(b * m, q)
        moved = torch.einsum("bmsq,bs->bmq", self._gradients, along.view(b, t)).reshape(b * m, q)
        cross = moved @ sums.T
        return gramian + cross + cross.T + (mean @ mean) * (sums @ sums.T)

    def _formed(self) -> Tensor:
        """Form the rows, some columns at a time, and multiply them."""
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
        add_to_gradients(self.parameters, [self._operand.product(D.flatten(0, 1))])

    def jacobian(self) -> Tensor:
        """Form all ``D_btᵀ A_b``, shape ``[b · m, n]``."""
        rows = torch.einsum("bmsq,bsp->bmqp", self._gradients, self._inputs())
        return self._operand.as_weights(rows).flatten(0, 1).flatten(1)

    def _inputs(self) -> Tensor:
        return self._operand.inputs(self._gradients.dtype).unflatten(0, (len(self._gradients), -1))


Source = tuple[Node, tuple[int, ...]]
"""A parameter's operation, and the parameter's shape at one position of its output."""


def rows_of_examples(
    pulls: Pulls, parameters: Sequence[Tensor], uses: Sequence[Use | None], gather: Gatherer
) -> BlockGradients | None:
    """Return the rows of all examples' losses from one backward pass per task; the graph is retained.

    ``None`` if the losses are stacked otherwise than by task, examples are not independent, or a parameter is used by
    an operation whose gradients cannot be separated by example.
    """
    losses, tasks = pulls.losses, pulls.tasks
    if not losses.by_column:
        return None
    known: list[tuple[Tensor, Source, Operand | Callable[[Tensor], Tensor]]] = []
    for parameter, use in zip(parameters, uses, strict=True):
        shape = parameter.shape
        formula = None if use is None else operand_of(use, shape) or affine_terms(use, shape)
        if use is None or formula is None:
            return None
        known.append((parameter, (use.node, shape_at_position(use, shape)), formula))

    sources = dict.fromkeys(source for _, source, _ in known)
    with Tap(list(dict.fromkeys(node for node, _ in sources))).open() as tap:
        layouts = _layouts(pulls, sources, tap)
        if layouts is None:
            return None
        ones = losses.values.new_ones(losses.parts)
        passes = [partial(gradients_at, *losses.column(task, ones), retain_graph=True) for task in tasks]
        found = dict(zip(tap.nodes, gather(tap, passes, row_like(parameters)), strict=True))
    blocks: list[StoredGradients] = []
    for parameter, (node, own), formula in known:
        gradients = found[node]
        if gradients is None:
            blocks.append(RowGradients(parameter.new_zeros(len(pulls.rows), parameter.numel()), [parameter]))
        elif isinstance(formula, Operand):
            blocks.append(ExampleBlock(formula, gradients, layouts[node, own], parameter))
        else:
            terms = formula(gradients).flatten(1, -1 - len(own))
            terms = terms.sum_to_size(*terms.shape[:2], *own)  # [m, positions, …]
            rows = layouts[node, own].by_example(terms, 1).sum(2).transpose(0, 1)
            blocks.append(RowGradients(rows.reshape(-1, parameter.numel()), [parameter]))
    return BlockGradients(blocks, parameters)


def _layouts(pulls: Pulls, sources: Iterable[Source], tap: Tap) -> dict[Source, ExampleLayout] | None:
    """Return the layouts of the operations that are reached; ``None`` if gradients of examples mix."""
    losses, tasks = pulls.losses, pulls.tasks
    half = any(node._input_metadata[0].dtype == torch.float16 for node in tap.nodes)
    weights, scales = _probes(losses.parts, len(tasks), _NARROW if half else _WIDE)
    probes = []
    for scale in scales:
        columns = [losses.column(task, w) for task, w in zip(tasks, weights * scale, strict=True)]
        edges = [edge for of_task, _ in columns for edge in of_task]
        seeds = [seed for _, of_task in columns for seed in of_task]
        probes.append(tap.listen(partial(gradients_at, edges, seeds, retain_graph=True)))
    found = dict(zip(tap.nodes, zip(*probes, strict=True), strict=True))
    layouts: dict[Source, ExampleLayout] = {}
    for node, shape in sources:
        gradients = [gradient for gradient in found[node] if gradient is not None]
        if not gradients:
            continue
        layout = _layout(gradients, len(shape), scales)
        if layout is None:
            return None
        layouts[node, shape] = layout
    return layouts


@cache
def _probes(examples: int, tasks: int, base: int) -> tuple[Tensor, list[Tensor]]:
    """Return random weights, ``[tasks, examples]``, the same in every step, and their scales in each pass.

    The scales, ``[examples]`` each, are ones and then powers of two that together differ between any two examples.
    """
    weights = torch.randn(tasks, examples, generator=torch.Generator().manual_seed(0))
    scales, digits = [torch.ones(examples)], torch.arange(examples)
    while digits.any():
        digit = digits % base
        scales.append((1.0 - 2.0 * (digit % 2)) * (digit // 2 - base // 4).exp2())
        digits = digits // base
    return weights, scales


def _layout(gradients: Sequence[Tensor], own: int, scales: Sequence[Tensor]) -> ExampleLayout | None:
    """Return the layout in which gradients, with ``own`` dimensions per position, are the first ones times scales."""
    plain, *scaled = (g[None].flatten(0, -1 - own)[..., None].flatten(1) for g in gradients)  # [positions, …]
    examples, positions = len(scales[0]), len(plain)
    if positions % examples:
        return None
    # Powers of two commute with rounding, so that a larger difference comes from another example.
    allowed = min(1e-5, 64 * torch.finfo(plain.dtype).eps) * plain.abs().amax(1, keepdim=True)
    for runs in (1, positions // examples):
        each = positions // examples // runs
        factors = [(1 / s.to(plain)).repeat_interleave(each).repeat(runs)[:, None] for s in scales[1:]]
        if all(bool(((g * f - plain).abs() <= allowed).all()) for g, f in zip(scaled, factors, strict=True)):
            return ExampleLayout(runs, examples)
    return None
