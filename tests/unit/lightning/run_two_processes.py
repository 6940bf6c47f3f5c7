"""Trains user modules on two Gloo processes: ``python -m tests.unit.lightning.run_two_processes OUT``."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from multitask.callbacks.conflict import probe
from tests.unit.lightning.test_own_module import (
    BATCH,
    WEIGHTINGS,
    Small,
    combiner,
    data,
    loader,
    state,
    trainer,
)


class Complete(Small):
    """Declares that no loss is ever absent, so that Lightning reduces the gradients of a scalarization."""

    labels_can_be_missing = False  # type: ignore[assignment]


class Interleaved(Sampler):
    """Every second example, in order, on each of two processes."""

    def __init__(self, count: int, processes: int) -> None:
        self.count, self.processes = count, processes

    def __iter__(self) -> Iterator[int]:
        return iter(range(dist.get_rank() if self.processes > 1 else 0, self.count, self.processes))

    def __len__(self) -> int:
        return self.count // self.processes


CASES: dict[str, tuple[type[Small], str, bool, int]] = {
    **{f"{name}, {k}": (Small, name, True, k) for name in WEIGHTINGS for k in (1, 2)},
    **{f"{name}, complete": (Complete, name, False, 1) for name in ("weighted_sum", "imtl_l")},
}


def train(case: str, processes: int) -> tuple[dict[str, Tensor], dict[str, float], bool]:
    """Train for two epochs; return the state, the logged metrics, and whether optimization was automatic.

    If losses can be absent, one is absent at first on the second process, which has the odd examples.
    """
    kind, name, absent, accumulate = CASES[case]
    module = kind(combiner(name), absent=absent, counted=absent)
    values = data(8 * BATCH)
    if absent:
        values["t1"][1 : 4 * BATCH : 2] = torch.nan
    keys: dict[str, Any] = {"accumulate_grad_batches": accumulate, "devices": processes}
    strategy = "ddp" if processes > 1 else "auto"
    run = trainer(2, strategy=strategy, use_distributed_sampler=False, **keys)  # Lightning's sampler shuffles
    batch_size, rows = BATCH * (2 // processes), Interleaved(8 * BATCH, processes)
    run.fit(module, loader(values, batch_size, sampler=rows), loader(values, batch_size, sampler=rows))
    return (
        state(module),
        {key: float(v) for key, v in run.callback_metrics.items()},
        module.automatic_optimization,
    )


def probed(rank: int = 0, processes: int = 1) -> tuple[Tensor, Tensor | None, list[int]] | None:
    """Probe a batch, of which only the even examples have the second loss, and none the third."""
    values = data(4 * BATCH)
    values["t1"][1::2] = torch.nan
    values["t2"][:] = torch.nan
    module = Small(combiner("gls"), absent=True, counted=True)
    return probe(module, {key: v[rank::processes] for key, v in values.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    found: dict[str, Any] = {case: train(case, 2) for case in CASES}
    found["probe"] = probed(dist.get_rank(), 2)
    torch.save(found, f"{sys.argv[1]}.{dist.get_rank()}")
