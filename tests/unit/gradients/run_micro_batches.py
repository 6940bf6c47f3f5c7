"""Takes a step of every network on two Gloo processes: ``python -m tests.unit.gradients.run_micro_batches OUT``."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torchjd.aggregation import UPGradWeighting

from multitask.step import Step
from tests.unit.gradients.micro_batches import MicroBatch, factors_up_to, network_of, take, window_of
from tests.unit.gradients.zoo import ZOO

CASES: dict[str, tuple[int, tuple[tuple[int, ...], tuple[int, ...]], float]] = {
    "factors": (3, ((2, 4), (5,)), torch.inf),
    "some rows": (2, ((3,), (1, 2)), 8),
}
"""The number of losses, the sizes of each process's micro-batches, and the most positions kept as factors."""


def windows_of(
    name: str, m: int, sizes: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[list[MicroBatch], list[MicroBatch], list[MicroBatch]]:
    """Return the micro-batches of each process and of both."""
    first, second = (window_of(name, m, of_process, seed) for seed, of_process in enumerate(sizes))
    return first, second, [*first, *second]


def in_half_precision(mine: slice) -> dict[str, list[torch.Tensor]]:
    """Return the gradients of a step in bfloat16 with some of three micro-batches, by engine."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)]).bfloat16()
    found, batches = {}, torch.randn(3, 5, 3).bfloat16()[mine]
    for engine in ("rows", "auto", "features"):
        net.zero_grad()
        step = Step(UPGradWeighting(), net, engine=engine)
        for number, x in enumerate(batches, 1):
            features = net[0](x)
            losses = [head(features).square().mean() for head in list(net)[1:]]
            if number < len(batches):
                step.add(losses)
            else:
                step.backward(losses)
        found[engine] = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    found = {}
    for name in ZOO:
        for case, (m, sizes, most) in CASES.items():
            if name != "hook that clips":
                with factors_up_to(most):
                    found[name, case] = take(network_of(name, m), windows_of(name, m, sizes)[rank])[:2]
    found["half precision"] = in_half_precision([slice(1), slice(1, 3)][rank])
    torch.save(found, f"{sys.argv[1]}.{rank}")
    dist.destroy_process_group()
