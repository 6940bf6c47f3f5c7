"""Factors of several processes, exchanged so that each process has those of some units of every layer.

The Gramian of a sum over processes contains products of different processes' factors. Each process therefore sends
its inputs to all, and the output gradients of some units to each. The columns of these units are then products over
the positions of all processes.
"""

import zlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.gradients.blocks import BlockGradients, ProductBlock
from multitask.gradients.factors import Factors, Layer, is_cheaper
from multitask.gradients.rows import _all_gather, add_to_gradients, processes, row_like


class Exchange:
    """The weights whose factors all processes have, if exchanging them is cheaper than exchanging rows.

    Args:
        layers: This process's layers with factors in the last micro-batch, by weight.
        kept: The factors so far, by weight.
        parameters: The shared parameters, the same on all processes.
        k: The number of rows.
    """

    def __init__(
        self,
        layers: Mapping[Tensor, Layer],
        kept: Mapping[Tensor, Factors],
        parameters: Sequence[Tensor],
        k: int,
    ) -> None:
        like = row_like(parameters)
        message = [(0, 0)] * len(parameters)
        for place, p in enumerate(parameters):
            if p in layers:
                before = len(kept[p].operand.stored) if p in kept else 0
                entries = before + len(layers[p].operand.stored)
                message[place] = _kind(layers[p], like), entries
        here = torch.tensor(message, dtype=torch.float64).to(like.device)
        there = here.new_empty(processes() * len(here), 2)
        _all_gather(there, here)
        self.weights: dict[Tensor, list[int]] = {}
        """The number of entries on each process, by weight."""
        kinds, sizes = there.cpu().view(processes(), -1, 2).permute(2, 1, 0).long().tolist()
        for p, of_weight, each in zip(parameters, kinds, sizes, strict=True):
            if 0 not in of_weight and len(set(of_weight)) == 1:
                operand = layers[p].operand
                if is_cheaper(operand, k, sum(each) * operand.each, processes=processes()):
                    self.weights[p] = each

    def products(self, kept: Mapping[Tensor, Factors], rows: Sequence[int]) -> "ExchangedProducts":
        """Exchange the factors of some rows, the same on every process."""
        rank, count = dist.get_rank(), processes()
        # In the order of the parameters, since processes may meet layers in different orders.
        local = [(p, kept[p].operand, kept[p].chosen(rows).tensor_split(count, 2)) for p in self.weights]
        like = local[0][2][0]
        outgoing: list[Tensor] = []
        shapes: list[tuple[int, ...]] = []
        for process in range(count):
            for p, operand, D in local:
                outgoing += [piece.to(like.dtype).flatten() for piece in (operand.stored, D[process])]
                entries = self.weights[p][process]
                shapes.append((entries, *operand.stored.shape[1:]))
                shapes.append((len(rows), entries * operand.each, D[rank].shape[2]))
        sizes = [torch.Size(shape).numel() for shape in shapes]
        per = 2 * len(local)
        incoming = like.new_empty(sum(sizes))
        dist.all_to_all_single(
            incoming,
            torch.cat(outgoing),
            [sum(sizes[i * per : (i + 1) * per]) for i in range(count)],
            [sum(map(len, outgoing[i * per : (i + 1) * per])) for i in range(count)],
        )
        pieces = [piece.view(shape) for piece, shape in zip(incoming.split(sizes), shapes, strict=True)]
        blocks = []
        for place, (p, operand, _) in enumerate(local):
            stored = torch.cat(pieces[2 * place :: per]).to(operand.stored.dtype)
            gradients = torch.cat(pieces[2 * place + 1 :: per], 1)
            blocks.append(ProductBlock(operand.on(stored), gradients, kept[p].parameters))
        return ExchangedProducts(blocks, [p for block in blocks for p in block.parameters])


class ExchangedProducts(BlockGradients):
    """Products over all processes' positions; each process has the ``blocks`` of columns of some units."""

    _blocks: Sequence[ProductBlock]

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``: the Gramians of the processes' columns add up."""
        gramian = super().gramian()
        dist.all_reduce(gramian)
        return gramian

    def combine(self, weights: Tensor) -> None:
        add_to_gradients(self.parameters, self._gathered(weights))

    def jacobian(self) -> Tensor:
        """Form and gather every row, shape ``[k, n]``."""
        each = torch.eye(len(self._blocks[0].gradients), device=self.parameters[0].device)
        return torch.stack([torch.cat([g.flatten() for g in self._gathered(one)]) for one in each])

    def _gathered(self, weights: Tensor) -> list[Tensor]:
        """Return a combination, one tensor per parameter."""
        count = processes()
        here = [columns for block in self._blocks for columns in block.combined(weights)]
        units = [block.operand.units if p.ndim > 1 else 0 for block in self._blocks for p in block.parameters]
        parts = [p.detach().tensor_split(count, unit) for p, unit in zip(self.parameters, units, strict=True)]
        sizes = [[part.numel() for part in of_process] for of_process in zip(*parts, strict=True)]
        width = max(map(sum, sizes))
        flat = torch.cat([columns.flatten() for columns in here])
        everyone = flat.new_zeros(count * width)
        _all_gather(everyone, torch.nn.functional.pad(flat, (0, width - len(flat))))
        pieces = [
            of_process[: sum(each)].split(each)
            for of_process, each in zip(everyone.split(width), sizes, strict=True)
        ]
        return [
            torch.cat([piece.view(part.shape) for piece, part in zip(found, like, strict=True)], unit)
            for found, like, unit in zip(zip(*pieces, strict=True), parts, units, strict=True)
        ]


def _kind(layer: Layer, like: Tensor) -> int:
    """Return a number that layers of all processes must share; zero if factors cannot be sent as numbers."""
    operand = layer.operand
    if not operand.dense and operand.p * torch.finfo(like.dtype).eps > 1:
        return 0  # indices would be rounded
    return 1 + zlib.crc32(repr((operand.kind, len(layer.parameters))).encode())
