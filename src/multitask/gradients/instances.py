"""One row per task and *example* from one backward pass per task, where the model keeps examples apart.

If no example's loss depends on another example, the gradients that flow back for all examples at once are
those of each example alone, side by side. Whether that is so is not taken from the kinds of the layers: two more
backward passes, the second of which has each example scaled by another power of two, show it at every layer, and
show which positions of the layer belong to which example. (A large batch takes a third pass: every example has a
scale, or a pair of scales, of its own.)
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from multitask.gradients.affine import affine_columns, leading_dimensions
from multitask.gradients.blocks import BlockGradients
from multitask.gradients.examples import ExampleBlock, ExampleLayout
from multitask.gradients.graph import Node
from multitask.gradients.losses import Pull, Pulls, Roots, gradients_at
from multitask.gradients.operands import operand_of
from multitask.gradients.rows import RowGradients, StoredGradients, row_like
from multitask.gradients.taps import Gatherer, Tap
from multitask.gradients.uses import Use

Make = Callable[[Tensor, ExampleLayout], StoredGradients]

# How many scales there are: powers of two from 2⁻³² on, and from 2⁻⁴ on in half precision, of both signs.
_WIDE, _NARROW = 128, 16


def rows_of_examples(
    pulls: Pulls, parameters: Sequence[Tensor], uses: Sequence[Use | None], gather: Gatherer
) -> BlockGradients | None:
    """Pull each task's losses of all examples at once, if that is exact.

    Returns:
        The gradients; ``None`` where losses are not those of examples, an example's losses depend on another
        example, or a parameter enters an operation whose gradients cannot be told apart by example.
    """
    losses, tasks = pulls.losses, pulls.tasks
    if not losses.by_column or not losses.of_examples:
        return None
    known: list[tuple[Tensor, Use, Make]] = []
    for parameter, use in zip(parameters, uses, strict=True):
        make = None if use is None else _block_of(use, parameter)
        if use is None or make is None:
            return None
        known.append((parameter, use, make))

    nodes: list[Node] = list(dict.fromkeys(use.node for _, use, _ in known))
    with Tap(nodes).open() as tap:
        layouts = _layouts(pulls, known, nodes, tap)
        if layouts is None:
            return None
        ones = losses.values.new_ones(losses.parts)
        passes = [_pass(losses.column(task, ones), pulls.retain_graph or task != tasks[-1]) for task in tasks]
        found = gather(tap, passes, row_like(parameters))
    gathered = dict(zip(nodes, found, strict=True))
    blocks: list[StoredGradients] = []
    for (parameter, use, make), layout in zip(known, layouts, strict=True):
        gradients = gathered[use.node]
        if gradients is None or layout is None:
            blocks.append(RowGradients(parameter.new_zeros(len(pulls.rows), parameter.numel()), [parameter]))
        else:
            blocks.append(make(gradients, layout))
    return BlockGradients(blocks, parameters)


def _pass(roots: Roots, retain_graph: bool) -> Pull:
    return lambda inputs: gradients_at(*roots, inputs, retain_graph)


def _block_of(use: Use, parameter: Tensor) -> Make | None:
    """Return what makes a parameter's block from the gradients of what its operation writes."""
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
    pulls: Pulls, known: Sequence[tuple[Tensor, Use, Make]], nodes: Sequence[Node], tap: Tap
) -> list[ExampleLayout | None] | None:
    """Return for each parameter which positions of its operation belong to which example.

    ``None`` for a parameter that nothing reaches; ``None`` as a whole if gradients flow from one example
    into another.
    """
    losses = pulls.losses

    def probe(scale: Tensor | float) -> list[Tensor | None]:
        weights = _weights(losses.parts, len(pulls.tasks)) * scale
        columns = [losses.column(task, w) for task, w in zip(pulls.tasks, weights, strict=True)]
        edges = [edge for of_task, _ in columns for edge in of_task]
        seeds = [seed for _, of_task in columns for seed in of_task]
        return tap.listen(_pass((edges, seeds), retain_graph=True))

    plain = probe(1.0)
    half = any(gradient is not None and gradient.dtype == torch.float16 for gradient in plain)
    scales = _scales(losses.parts, _NARROW if half else _WIDE)
    probes = dict(zip(nodes, zip(plain, *map(probe, scales), strict=True), strict=True))
    layouts: list[ExampleLayout | None] = []
    found: dict[tuple[Node, int], ExampleLayout | None] = {}
    for parameter, use, _ in known:
        there = [gradient for gradient in probes[use.node] if gradient is not None]
        if not there:
            layouts.append(None)
            continue
        lead = leading_dimensions(use, parameter.shape, there[0].ndim)
        if lead > 0 and (use.node, lead) not in found:
            one, *others = (g.flatten(0, lead - 1)[..., None].flatten(1) for g in there)
            found[use.node, lead] = _layout(one, others, [scale.to(one.device) for scale in scales])
        layout = found.get((use.node, lead))
        if layout is None:
            return None
        layouts.append(layout)
    return layouts


@cache
def _weights(examples: int, tasks: int) -> Tensor:
    """Return random weights ``[tasks, examples]``, the same in every step."""
    return torch.randn(tasks, examples, generator=torch.Generator().manual_seed(0))


@cache
def _scales(examples: int, base: int) -> list[Tensor]:
    """Return scales ``[examples]``, powers of two of both signs, that together differ from example to example."""
    scales: list[Tensor] = []
    digits = torch.arange(examples)
    while not scales or digits.any():
        digit = digits % base
        scales.append((1.0 - 2.0 * (digit % 2)) * (digit // 2 - base // 4).exp2())
        digits = digits // base
    return scales


def _layout(plain: Tensor, scaled: Sequence[Tensor], scales: Sequence[Tensor]) -> ExampleLayout | None:
    """Return the layout in which one gradient, ``[positions, numbers]``, is the others scaled by example."""
    examples, positions = len(scales[0]), len(plain)
    if positions % examples:
        return None
    # A power of two commutes with rounding, so that a difference has come from another example.
    allowed = min(1e-5, 64 * torch.finfo(plain.dtype).eps) * plain.abs().amax(1, keepdim=True)
    for first in (True, False):
        layout = ExampleLayout(examples, first, positions)
        factors = [
            layout.flat(s[:, None].expand(-1, positions // examples)).to(plain)[:, None] for s in scales
        ]
        if all(
            bool(((other - factor * plain).abs() <= factor.abs() * allowed).all())
            for factor, other in zip(factors, scaled, strict=True)
        ):
            return layout
    return None
