"""Sharding of parameters by FSDP2 under Lightning's ``ModelParallelStrategy``."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from multitask.gradients.rows import is_sharded, local
from multitask.gradients.sharded import sharded_modules

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def shards(trainer: Trainer) -> bool:
    """Return whether a Trainer shards parameters."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def shard(modules: Iterable[nn.Module], mesh: Any) -> None:
    """Shard modules, each called by its ``forward``, and, as separate units, the blocks in their lists of modules.

    Tied and integer parameters are not sharded.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    modules = list(modules)
    places = Counter(p for m in modules for _, p in m.named_parameters(remove_duplicate=False))
    whole = {p for p, count in places.items() if count > 1 or not p.is_floating_point()}
    for module in modules:
        for unit in (*_blocks(module), *([] if isinstance(module, _CONTAINERS) else [module])):
            if not isinstance(unit, FSDPModule) and not whole.issuperset(unit.parameters()):
                fully_shard(unit, mesh=mesh, ignored_params=whole)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost members of module containers, the layers of a network."""
    for child in module.children():
        if isinstance(module, (nn.Sequential, *_CONTAINERS)) and not isinstance(child, _CONTAINERS):
            yield child
        else:
            yield from _blocks(child)


def load_whole(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Load a full state dict, present on every process, into a module whose parameters may be sharded."""
    if not sharded_modules(module):
        module.load_state_dict(weights)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(module, dict(weights), options=StateDictOptions(full_state_dict=True))


def clip(parameters: Iterable[Tensor], value: float, algorithm: str | None) -> None:
    """Clip gradients that may be sharded, as torch clips whole ones.

    ``value`` is the maximum of the total norm, or with ``algorithm="value"`` of each element's absolute value.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [local(gradient) for gradient in gradients]
    if algorithm == "value":
        for part in parts:
            part.clamp_(-value, value)
    elif parts:
        squares = torch.zeros(2, dtype=torch.float64, device=parts[0].device)
        for gradient, part in zip(gradients, parts, strict=True):
            squares[int(is_sharded(gradient))] += part.norm().double() ** 2
        dist.all_reduce(squares[1:])
        factor = (value / (squares.sum().sqrt() + 1e-6)).clamp(max=1.0)
        for part in parts:
            part.mul_(factor.to(part))
