"""Trains small problems on two gloo processes and saves the parameters: ``python -m tests.run_distributed OUT``."""

import sys

import torch
from lightning import Trainer
from torch import nn

from tests.conftest import Arrays, arrays, build, regression
from tests.weighting.weighting_members import NAMES, NEEDS_THREE, make

METHODS = [name for name in NAMES if getattr(make(name, 5), "rows", "task") != "example"]


def train(
    method: str, batch_size: int | None, accumulate: int = 1, **trainer: object
) -> dict[str, torch.Tensor]:
    """Train in uneven batches, one task labelled in some batches and on some processes only."""
    torch.manual_seed(0)
    tasks = 5 if method in NEEDS_THREE else 3
    combiner = make(method, tasks)
    # The two halves of a batch are those of its parts where these are even.
    data = arrays(tasks, count=24 if getattr(combiner, "rows", "task") == "half" else 21)
    if method not in NEEDS_THREE:
        data["t1"][12:] = torch.nan
    heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(tasks)}
    trunk = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    module = build(combiner, trunk=trunk, heads=heads, accumulate_grad_batches=accumulate)
    runner = Trainer(
        accelerator="cpu",
        max_epochs=2,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,  # type: ignore[arg-type]
    )
    runner.fit(module, datamodule=Arrays(data, batch_size=batch_size))
    return {name: p.detach().clone() for name, p in module.named_parameters()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for name in METHODS:
        for accumulate in (1, 2):
            found[name, accumulate] = train(name, 4, accumulate, strategy="ddp", devices=2)
    torch.save(found, f"{sys.argv[1]}.{torch.distributed.get_rank()}")
