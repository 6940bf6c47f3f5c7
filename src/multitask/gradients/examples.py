"""The rows of all examples from one backward pass per task, if the model treats examples independently.

The gradients that propagate for all examples at once are then those of single examples, side by side. Independence is
tested in every step: two more passes, in the second of which each example's losses are multiplied by another power of
two, show whether gradients of examples mix, and which positions of an operation belong to which example. (A large
batch takes three passes, with two factors per example.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from multitask.gradients.affine import affine_columns, leading_dimensions
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


@dataclass(frozen=True)
class ExampleLayout:
    """The order of an operation's positions, ``[runs, examples, positions of a run]``.

    One run if each example's positions are adjacent, several if examples are interleaved, as in ``[tokens, batch]``.
    """

    examples: int
    runs: int

    def by_example(self, positions: Tensor, dim: int) -> Tensor:
        """Split a dimension of all positions into two, the examples and the positions of each."""
        split = positions.unflatten(dim, (self.runs, self.examples, -1))
        return split.transpose(dim, dim + 1).flatten(dim + 1, dim + 2)

    def flat(self, values: Tensor) -> Tensor:
        """Return the inverse of :meth:`by_example` for the first two dimensions."""
        return values.unflatten(1, (self.runs, -1)).transpose(0, 1).flatten(0, 2)


class ExampleBlock(StoredGradients):
    """Rows ``D_btᵀ A_b`` of a weight for example b and task t, ordered by example.

    Args:
        operand: ``A``, ``[positions, p]``.
        gradients: All ``D_t``, shape ``[m, positions, q]``.
        layout: The order of the positions.
        parameters: The weight.
    """

    def __init__(
        self, operand: Operand, gradients: Tensor, layout: ExampleLayout, parameters: Sequence[Tensor]
    ) -> None:
        super().__init__(parameters)
        self._operand = operand
        self._layout = layout
        # [b, m, t, q]: example, task, position of the example, column
        self._gradients = layout.by_example(gradients, 1).transpose(0, 1).contiguous()

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
        order = self._layout.by_example(torch.arange(b * t, device=self._gradients.device), 0).flatten()
        kernel, centring = self._operand.centred_kernel(self._gradients.dtype)
        kernel = kernel[order][:, order].view(b, 1, t, b, 1, t)
        gradients = self._gradients if self._operand.dense else self._merged(kernel)
        D = gradients.reshape(b * m * t, q)
        parts = []
        size = max(1, _CHUNK // max(1, b * (m * t) ** 2))
        for some, near in zip(gradients.split(size), kernel.split(size), strict=True):
            products = (some.reshape(-1, q) @ D.T).view(len(some), m, t, b, m, t)
            parts.append((products * near).sum((2, 5)))
        gramian = torch.cat(parts).reshape(b * m, b * m)
        if centring is None:
            return gramian
        mean, along = centring
        sums = self._gradients.sum(2).reshape(b * m, q)
        moved = torch.einsum("bmsq,bs->bmq", self._gradients, along[order].view(b, t)).reshape(b * m, q)
        cross = moved @ sums.T
        return gramian + cross + cross.T + (mean @ mean) * (sums @ sums.T)

    def _merged(self, kernel: Tensor) -> Tensor:
        """Return the gradients summed over an example's positions with equal inputs, at the first of these.

        If gradients cancel in such a sum, products of single positions would leave only rounding errors.
        """
        same = kernel[:, 0, :, :, 0].diagonal(dim1=0, dim2=2).movedim(-1, 0)
        first = same.tril(-1).sum(2, keepdim=True) == 0
        return (same * first)[:, None] @ self._gradients

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
        add_to_gradients(self.parameters, [self._operand.product(self._layout.flat(D))])

    def jacobian(self) -> Tensor:
        """Form all ``D_btᵀ A_b``, shape ``[b · m, n]``."""
        rows = torch.einsum("bmsq,bsp->bmqp", self._gradients, self._inputs())
        return self._operand.as_weights(rows).flatten(0, 1).flatten(1)

    def _inputs(self) -> Tensor:
        return self._layout.by_example(self._operand.inputs(self._gradients.dtype), 0)


Make = Callable[[Tensor, ExampleLayout], StoredGradients]
"""From the output gradients of a parameter's operation, ``[m, *output]``, to the parameter's rows."""


def rows_of_examples(
    pulls: Pulls, parameters: Sequence[Tensor], uses: Sequence[Use | None], gather: Gatherer
) -> BlockGradients | None:
    """Return the rows of all examples' losses from one backward pass per task.

    ``None`` if the losses are stacked otherwise than by task, examples are not independent, or a parameter is used by
    an operation whose gradients cannot be separated by example.
    """
    losses, tasks = pulls.losses, pulls.tasks
    if not losses.by_column:
        return None
    known: list[tuple[Tensor, Use, Make]] = []
    for parameter, use in zip(parameters, uses, strict=True):
        make = None if use is None else _block_of(use, parameter)
        if use is None or make is None:
            return None
        known.append((parameter, use, make))

    with Tap(list(dict.fromkeys(use.node for _, use, _ in known))).open() as tap:
        layouts = _layouts(pulls, known, tap)
        if layouts is None:
            return None
        ones = losses.values.new_ones(losses.parts)
        last = None if pulls.retain_graph else tasks[-1]
        passes = [
            partial(gradients_at, *losses.column(task, ones), retain_graph=task != last) for task in tasks
        ]
        found = dict(zip(tap.nodes, gather(tap, passes, row_like(parameters)), strict=True))
    blocks: list[StoredGradients] = []
    for parameter, use, make in known:
        gradients = found[use.node]
        if gradients is None:
            blocks.append(RowGradients(parameter.new_zeros(len(pulls.rows), parameter.numel()), [parameter]))
        else:
            blocks.append(make(gradients, layouts[parameter]))
    return BlockGradients(blocks, parameters)


def _block_of(use: Use, parameter: Tensor) -> Make | None:
    """Return the function that computes a parameter's rows."""
    operand = operand_of(use, parameter.shape)
    if operand is not None:
        return lambda found, layout: ExampleBlock(operand, operand.matrix(found), layout, [parameter])
    columns = affine_columns(use, parameter.shape)
    if columns is None:
        return None

    def make(found: Tensor, layout: ExampleLayout) -> StoredGradients:
        by_example = layout.by_example(columns(found), 1).sum(2).transpose(0, 1)
        return RowGradients(by_example.reshape(-1, parameter.numel()), [parameter])

    return make


def _layouts(
    pulls: Pulls, known: Sequence[tuple[Tensor, Use, Make]], tap: Tap
) -> dict[Tensor, ExampleLayout] | None:
    """Return the layouts of the operations of all reached parameters; ``None`` if gradients of examples mix."""
    losses = pulls.losses

    def probe(scale: Tensor | float) -> list[Tensor | None]:
        weights = _weights(losses.parts, len(pulls.tasks)) * scale
        columns = [losses.column(task, w) for task, w in zip(pulls.tasks, weights, strict=True)]
        edges = [edge for of_task, _ in columns for edge in of_task]
        seeds = [seed for _, of_task in columns for seed in of_task]
        return tap.listen(partial(gradients_at, edges, seeds, retain_graph=True))

    plain = probe(1.0)
    half = any(gradient is not None and gradient.dtype == torch.float16 for gradient in plain)
    scales = _scales(losses.parts, _NARROW if half else _WIDE)
    probes = dict(zip(tap.nodes, zip(plain, *map(probe, scales), strict=True), strict=True))
    found: dict[tuple[Node, int], ExampleLayout | None] = {}
    layouts: dict[Tensor, ExampleLayout] = {}
    for parameter, use, _ in known:
        gradients = [gradient for gradient in probes[use.node] if gradient is not None]
        if not gradients:
            continue
        key = use.node, leading_dimensions(use, parameter.shape, gradients[0].ndim)
        if key not in found:
            found[key] = _layout(gradients, key[1], scales)
        layout = found[key]
        if layout is None:
            return None
        layouts[parameter] = layout
    return layouts


@cache
def _weights(examples: int, tasks: int) -> Tensor:
    """Return random weights, ``[tasks, examples]``, the same in every step."""
    return torch.randn(tasks, examples, generator=torch.Generator().manual_seed(0))


@cache
def _scales(examples: int, base: int) -> list[Tensor]:
    """Return tensors of powers of two, ``[examples]`` each, that together differ between any two examples."""
    scales: list[Tensor] = []
    digits = torch.arange(examples)
    while not scales or digits.any():
        digit = digits % base
        scales.append((1.0 - 2.0 * (digit % 2)) * (digit // 2 - base // 4).exp2())
        digits = digits // base
    return scales


def _layout(gradients: Sequence[Tensor], lead: int, scales: Sequence[Tensor]) -> ExampleLayout | None:
    """Return the layout in which the further gradients are the first one times the scales of the examples."""
    if lead < 1:
        return None
    plain, *scaled = (g.flatten(0, lead - 1)[..., None].flatten(1) for g in gradients)  # [positions, …]
    examples, positions = len(scales[0]), len(plain)
    if positions % examples:
        return None
    # Powers of two commute with rounding, so that a larger difference comes from another example.
    allowed = min(1e-5, 64 * torch.finfo(plain.dtype).eps) * plain.abs().amax(1, keepdim=True)
    by_position = [s.to(plain.device)[:, None].expand(-1, positions // examples) for s in scales]
    for runs in (1, positions // examples):
        layout = ExampleLayout(examples, runs)
        factors = [layout.flat(s).to(plain)[:, None] for s in by_position]
        if all(
            bool(((other - factor * plain).abs() <= factor.abs() * allowed).all())
            for factor, other in zip(factors, scaled, strict=True)
        ):
            return layout
    return None
