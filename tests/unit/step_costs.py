"""Measures memory and communication of a step per process: ``python -m tests.unit.step_costs`` prints a table.

Bytes sent are those of ring algorithms: for b bytes on p processes, each process sends b (p − 1) / p in an all-gather
or a reduce-scatter, and twice that in an all-reduce.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._pytree import tree_leaves

from multitask import Step
from multitask.gradients import rows as rows_of_processes
from multitask.gradients.rows import local
from tests.unit.weighting.members import make

TASKS = 3
MIB = 2**20


class Encoder(nn.Module):
    """A transformer encoder with a head per task.

    Args:
        width: Width of the layers.
        layers: Number of layers.
    """

    def __init__(self, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(TASKS))

    def forward(self, x: Tensor) -> list[Tensor]:
        for layer in self.layers:
            x = layer(x)
        return [head(x).square().mean() for head in self.heads]


@contextmanager
def sent() -> Iterator[dict[str, float]]:
    """Count the bytes that collectives send, by kind."""
    counts = {"all_gather": 0.0, "reduce_scatter": 0.0, "all_reduce": 0.0}
    names = [
        (owner, name)
        for owner, all_names in (
            (
                dist,
                (
                    "all_gather_single",
                    "all_gather_into_tensor",
                    "reduce_scatter_single",
                    "reduce_scatter_tensor",
                ),
            ),
            (rows_of_processes, ("_all_gather", "_reduce_scatter")),
        )
        for name in all_names
        if hasattr(owner, name) and not (name.endswith("tensor") and hasattr(dist, "all_gather_single"))
    ]
    names.append((dist, "all_reduce"))
    kept = [getattr(owner, name) for owner, name in names]

    def counted(name: str, collective: Any) -> Any:
        kind = next(kind for kind in counts if kind in name)

        def call(*args: Any, **options: Any) -> Any:
            tensors = [a for a in (*args, *options.values()) if isinstance(a, Tensor)]
            whole = max(t.numel() * t.element_size() for t in tensors)
            share = (dist.get_world_size() - 1) / dist.get_world_size()
            counts[kind] += whole * share * (2 if kind == "all_reduce" else 1)
            return collective(*args, **options)

        return call

    for (owner, name), collective in zip(names, kept, strict=True):
        setattr(owner, name, counted(name, collective))
    try:
        yield counts
    finally:
        for (owner, name), collective in zip(names, kept, strict=True):
            setattr(owner, name, collective)


def measured(weighting: str, sharded: bool, **model: int) -> dict[str, float]:
    """Return the bytes of parameters, gradients and rows on this process after a step, and the bytes sent in it."""
    torch.manual_seed(0)
    net = Encoder(**model)
    if sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in net.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    step = Step(make(weighting, TASKS).float(), net, engine="rows")
    x = torch.randn(2, 8, net.heads[0].in_features)
    for _ in range(2):  # the first step also agrees on the shared parameters
        for p in net.parameters():
            p.grad = None
        with sent() as counts:
            result = step.backward(net(x))
    parameters = list(net.parameters())
    found = result.gradients
    kept = getattr(found, "_gradients", None)
    stored = [getattr(kept, name) for name in ("_jacobian", "_rows", "_shards") if hasattr(kept, name)]
    return {
        "parameters": float(sum(_bytes(local(p)) for p in parameters)),
        "gradients": float(sum(_bytes(local(p.grad)) for p in parameters if p.grad is not None)),
        "rows": float(sum(_bytes(tensor) for tensor in tree_leaves(stored))),
        **counts,
    }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _work(rank: int, processes: int, file: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=processes)
    for weighting in ("weighted_sum", "upgrad"):
        for sharded in (False, True):
            found = measured(weighting, sharded)
            cells = [f"{found[key] / MIB:.2f}" for key in ("parameters", "gradients", "rows")]
            cells.append(f"{(found['all_gather'] + found['reduce_scatter'] + found['all_reduce']) / MIB:.2f}")
            if rank == 0:
                strategy = "fsdp" if sharded else "ddp"
                print(f"| `{weighting}` | {strategy} | {processes} | {' | '.join(cells)} |", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    for count in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.start_processes(
                _work, (count, f"{folder}/store"), count, start_method="fork"
            )
