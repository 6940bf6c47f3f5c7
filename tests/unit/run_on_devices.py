"""Steps of one model on any device or several processes: ``python -m tests.unit.run_on_devices OUT PROCESSES``."""

import sys
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multitask import Combiner, JacobianMethod, Step
from tests.unit.weighting.members import make, number_of_tasks

STEPS, BATCH = 3, 12
ON_PROCESSES = ("weighted_sum", "uw", "famo", "upgrad", "gradvac", "modo", "graddrop", "moco")


def problem(name: str, device: str | torch.device) -> tuple[Combiner, nn.Module, nn.ModuleList, Tensor]:
    """Return a weighting, a trunk, heads and inputs in float64, with the same values on every device."""
    m = number_of_tasks(name)
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 16)).double()
    heads = nn.ModuleList(nn.Linear(16, 2) for _ in range(m)).double()
    inputs = torch.randn(BATCH, 5, dtype=torch.float64)
    return make(name, m), trunk.to(device), heads.to(device), inputs.to(device)


def losses_of(weighting: Combiner, trunk: nn.Module, heads: Iterable[nn.Module], inputs: Tensor) -> Tensor:
    """Return conflicting losses, with as many rows as the weighting needs."""
    features = trunk(inputs)
    each = [(head(features) - i).pow(2).mean(1) + 0.5 for i, head in enumerate(heads)]
    rows = weighting.rows if isinstance(weighting, JacobianMethod) else "task"
    if rows == "example":
        return torch.stack(each, -1)
    if rows == "half":
        return torch.stack([torch.stack([loss[part::2].mean() for loss in each]) for part in range(2)])
    return torch.stack([loss.mean() for loss in each])


def trained(name: str, device: str | torch.device, rank: int = 0, processes: int = 1) -> Tensor:
    """Return all parameters, on the CPU, after steps of SGD with this process's part of the batch."""
    weighting, trunk, heads, inputs = problem(name, device)
    model = nn.ModuleList([trunk, heads])
    step = Step(weighting, model)
    optimizer = torch.optim.SGD([*model.parameters(), *step.parameters()], lr=0.1)
    inputs = inputs.chunk(processes)[rank]
    for _ in range(STEPS):
        result = step.backward(losses_of(weighting, trunk, heads, inputs))
        optimizer.step()

        def recompute() -> Tensor:
            mean = losses_of(weighting, trunk, heads, inputs)
            if processes > 1:
                dist.all_reduce(mean)
            return mean / processes

        step.after_step(recompute, result.present)
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten().cpu() for p in [*model.parameters(), *step.parameters()]])


def main(rank: int, out: str, processes: int, backend: str) -> None:
    """Train as one of several processes and save the parameters."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    store = f"file://{out}.store"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=processes)
    found = {name: trained(name, device, rank, processes) for name in ON_PROCESSES}
    torch.save(found, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    count, kind = int(sys.argv[2]), "nccl" if torch.cuda.is_available() else "gloo"
    torch.multiprocessing.spawn(main, (sys.argv[1], count, kind), count)
