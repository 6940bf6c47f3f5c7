"""One row a task and *example* from one backward pass a task, where the trunk keeps examples apart.

If no example's features depend on another example, the gradients that flow back for all examples at once are
those of each example alone, side by side. Whether that is so is not taken from the kinds of the layers: two more
backward passes, the second of which has each example scaled by another power of two, show it at every layer, and
show which positions of the layer belong to which example.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from multitask.autodiff.affine import affine_columns, leading_dimensions
from multitask.autodiff.blocks import Block, BlockGradients, StoredBlock
from multitask.autodiff.examples import ExampleBlock, Layout
from multitask.autodiff.gradients import Cotangents
from multitask.autodiff.operands import operand_of
from multitask.autodiff.sweep import Sweep, Tap
from multitask.autodiff.uses import Node, Use

Make = Callable[[int, Tensor, Layout], Block]


class ExampleRows:
    """Differentiates a trunk for every example of the batch, if that is exact."""

    def __init__(self) -> None:
        self._sweep = Sweep()

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        cotangents: Cotangents,
        parameters: Sequence[nn.Parameter],
        uses: Sequence[Use | None],
    ) -> BlockGradients | None:
        """Pull the cotangents back through the trunk; each group must be one example, in the batch's order.

        Returns:
            The gradients; ``None`` where the groups are others, an example's features depend on another
            example, or a parameter enters an operation whose gradients cannot be told apart by example.
        """
        examples = cotangents.count
        if not _one_each(cotangents.groups, examples) or any(len(o) != examples for o in outputs):
            return None
        known: list[tuple[nn.Parameter, Use, Make]] = []
        for parameter, use in zip(parameters, uses, strict=True):
            make = None if use is None else _block_of(use, parameter)
            if use is None or make is None:
                return None
            known.append((parameter, use, make))

        nodes: list[Node] = list(dict.fromkeys(use.node for _, use, _ in known))
        tasks = len(cotangents.by_task)
        with Tap(nodes).open() as tap:
            layouts = _layouts(outputs, known, nodes, tap, examples)
            if layouts is None:
                return None
            rows = (
                [(o, g) for o, g in zip(outputs, task, strict=True) if g is not None]
                for task in cotangents.by_task
            )
            found = self._sweep(tap, rows, tasks, parameters[0])
        piles = dict(zip(nodes, found.at_nodes, strict=True))
        blocks: list[Block] = []
        for place, ((parameter, use, make), layout) in enumerate(zip(known, layouts, strict=True)):
            pile = piles[use.node]
            if pile is None or layout is None:
                nothing = parameter.new_zeros(examples * tasks, parameter.numel())
                blocks.append(StoredBlock([place], nothing, [parameter]))
            else:
                blocks.append(make(place, pile, layout))
        return BlockGradients(blocks, parameters)


def _one_each(groups: Tensor | None, examples: int) -> bool:
    if groups is None or examples < 2 or len(groups) != examples:
        return False
    return bool((groups == torch.arange(examples, device=groups.device)).all())


def _block_of(use: Use, parameter: nn.Parameter) -> Make | None:
    """Return what makes a parameter's block from the gradients of what its operation writes."""
    operand = operand_of(use, parameter.shape)
    if operand is not None:
        return lambda place, pile, layout: ExampleBlock(place, operand, operand.matrix(pile), layout)
    columns = affine_columns(use, parameter.shape)
    if columns is None:
        return None

    def make(place: int, pile: Tensor, layout: Layout) -> Block:
        by_example = layout.by_example(columns(pile), 1).sum(2).transpose(0, 1)
        return StoredBlock([place], by_example.reshape(-1, parameter.numel()), [parameter])

    return make


def _layouts(
    outputs: Sequence[Tensor],
    known: Sequence[tuple[nn.Parameter, Use, Make]],
    nodes: Sequence[Node],
    tap: Tap,
    examples: int,
) -> list[Layout | None] | None:
    """Return for each parameter whose its operation's positions are, ``None`` where nothing reaches it.

    ``None`` as a whole if gradients flow from one example into another.
    """
    generator = torch.Generator().manual_seed(0)
    # Eight in a row differ, and so do the examples that different layouts put at the same place.
    order = torch.cat([torch.randperm(8, generator=generator) for _ in range(-(-examples // 8))])
    scales = (order[:examples] - 4.0).exp2().to(outputs[0].device)
    plain = [(o, torch.randn(o.shape, generator=generator).to(o)) for o in outputs]
    scaled = [(o, g * scales.to(g).view(-1, *[1] * (g.ndim - 1))) for o, g in plain]
    pairs = zip(tap.pull(plain, retain_graph=True), tap.pull(scaled, retain_graph=True), strict=True)
    probes = dict(zip(nodes, pairs, strict=True))
    layouts: list[Layout | None] = []
    for parameter, use, _ in known:
        one, other = probes[use.node]
        if one is None or other is None:
            layouts.append(None)
            continue
        lead = leading_dimensions(use, parameter.shape, one.ndim)
        layout = None
        if lead > 0:
            layout = _layout(
                one.flatten(0, lead - 1).flatten(1), other.flatten(0, lead - 1).flatten(1), scales
            )
        if layout is None:
            return None
        layouts.append(layout)
    return layouts


def _layout(plain: Tensor, scaled: Tensor, scales: Tensor) -> Layout | None:
    """Return the layout in which one gradient, ``[positions, numbers]``, is the other scaled by example."""
    examples, positions = len(scales), len(plain)
    if positions % examples:
        return None
    # A power of two commutes with rounding, so that what differs has come from another example.
    allowed = min(1e-5, 64 * torch.finfo(plain.dtype).eps) * plain.abs().amax(1, keepdim=True)
    for first in (True, False):
        layout = Layout(examples, first)
        scale = layout.flat(scales[:, None].expand(-1, positions // examples)).to(plain)[:, None]
        if bool(((scaled - scale * plain).abs() <= scale * allowed).all()):
            return layout
    return None
