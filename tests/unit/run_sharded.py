"""Takes steps on a model sharded by FSDP2, as one of several Gloo processes, and saves the results."""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from multitask import Step
from multitask.gradients.rows import local
from tests.unit.step_costs import measured
from tests.unit.weighting.members import make, number_of_tasks
from tests.unit.weighting.promises import HALVES, keeping

STATEFUL = {"db_mtl", "excess_mtl", "m_config", "moco"}
METHODS = [name for name in keeping("batch") if name not in STATEFUL]
# A member, options of it, and options of the step.
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "weighted heads": ("upgrad", {}, {"heads": "weighted"}),
    "every": ("mgda", {"every": 2}, {}),
    "groups": ("upgrad", {"groups": "layer"}, {}),
    "rescale": ("trimmed_mean", {"rescale": True}, {}),
    "plain head": ("upgrad", {}, {"plain": True}),
    "whole between passes": ("upgrad", {}, {"whole": True}),
}
CASES = [(name, 2) for name in (*METHODS, *VARIANTS)] + [(name, 1) for name in ("famo", "uw", "upgrad")]
ON_FOUR = [("upgrad", 2), ("uw", 1), ("graddrop", 2), ("trimmed_mean", 1), ("plain head", 2)]
EXAMPLES = 16


class Model(nn.Module):
    """A trunk of two blocks and a head per task; the number of processes does not divide the width of 7."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in ((5, 7), (7, 4)))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        for block in self.blocks:
            x = block(x)
        return [head(x) for head in self.heads]


def sharded(model: Model, plain: bool) -> Any:
    """Shard each block separately and the heads together; ``plain`` leaves the first head unsharded."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=set(model.heads[0].parameters()) if plain else None)
    return model


def losses_of(model: Model, x: Tensor, targets: Tensor, halves: bool) -> tuple[Tensor, Tensor]:
    """Return the mean losses over labelled examples, NaN if there are none, and the counts."""
    found, counts = [], []
    for prediction, target in zip(model(x), targets, strict=True):
        for part in (0, 1) if halves else (slice(None),):
            rows = slice(part, None, 2) if halves else part
            labelled = ~target[rows].isnan().any(1)
            errors = (prediction[rows] - target[rows].nan_to_num()).square().mean(1)
            found.append((errors * labelled).sum() / labelled.sum())
            counts.append(labelled.sum())
    if halves:
        of_halves = [torch.stack([torch.stack(each[half::2]) for half in (0, 1)]) for each in (found, counts)]
        return of_halves[0], of_halves[1]
    return torch.stack(found), torch.stack(counts)


def steps(case: str, micro: int, rank: int = 0, processes: int = 1, shard: bool = False) -> dict[str, Any]:
    """Take two steps of SGD on ``micro`` micro-batches, each of which is split over the processes.

    Task 1 has labels only on the last process, and none in the second step.
    """
    method, options, step_options = VARIANTS.get(case, (case, {}, {}))
    options, step_options = dict(options), dict(step_options)
    plain, stays_whole = step_options.pop("plain", False), step_options.pop("whole", False)
    tasks, halves = number_of_tasks(method), method in HALVES
    torch.manual_seed(0)
    model = Model(tasks).double()
    data = torch.randn(2, micro, EXAMPLES, 5, dtype=torch.float64)
    targets = torch.randn(2, micro, tasks, EXAMPLES, 2, dtype=torch.float64)
    if not halves and method not in ("krum", "trimmed_mean"):
        targets[:, :, 1, : EXAMPLES * 3 // 4] = torch.nan
        targets[1, :, 1] = torch.nan
    if shard:
        sharded(model, plain).set_reshard_after_backward(not stays_whole)
    step = Step(make(method, tasks, **options), model, **step_options)
    own = list(step.parameters())
    optimizer = torch.optim.SGD([*model.parameters(), *own], lr=0.1)
    size = EXAMPLES // processes
    mine = slice(rank * size, (rank + 1) * size)
    gramians = []
    for x, y in zip(data, targets, strict=True):
        batches = [losses_of(model, a[mine], b[:, mine], halves) for a, b in zip(x, y, strict=True)]
        for losses, counts in batches[:-1]:
            step.add(losses, counts)
        result = step.backward(*batches[-1])
        if result.gradients is not None:
            gramians.append(result.gradients.gramian())
        optimizer.step()
        optimizer.zero_grad()
        if step.looks_after:
            everything = x.flatten(0, 1), torch.cat(list(y), 1), halves
            step.after_step(lambda given=everything: losses_of(model, *given)[0], result.present)
    return {
        "parameters": {name: whole(p) for name, p in model.named_parameters()},
        "own": [p.detach().clone() for p in own],
        "gramians": gramians,
        "weights": result.weights,
        "kept": sum(local(p).numel() for p in model.parameters()),
    }


def whole(p: Tensor) -> Tensor:
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    found: dict[Any, Any] = {
        case: steps(*case, rank, processes, shard=True) for case in (CASES if processes == 2 else ON_FOUR)
    }
    if processes == 2:
        found["costs"] = {
            name: measured(name, True, width=16, layers=2) for name in ("weighted_sum", "upgrad")
        }
    torch.save(found, f"{sys.argv[1]}.{rank}")
    dist.destroy_process_group()
