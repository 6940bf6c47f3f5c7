"""Trains modules that Lightning's ModelParallelStrategy shards: ``python -m tests.unit.lightning.run_sharded OUT``."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from tests.conftest import Arrays, arrays, build, regression
from tests.unit.weighting.members import make

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "scalarization": ("weighted_sum", 1, {}),
    "own parameters, clipped": ("uw", 1, {"gradient_clip_val": 0.1}),
    "accumulated": ("weighted_sum", 2, {}),
    "after the step": ("famo", 1, {}),
    "Jacobian, clipped": ("upgrad", 2, {"gradient_clip_val": 0.05}),
    "Jacobian, clipped by value": (
        "mgda",
        1,
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ),
}


def fitted(case: str, processes: int, epochs: int = 2, checkpoint: Any = None, whole: bool = True) -> Trainer:
    """Train on uneven batches; one task has labels only in some batches and on some processes."""
    method, accumulate, keys = CASES[case]
    data = arrays(3, count=17)
    data["t1"][6:] = torch.nan
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.Tanh())
    heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(3)}
    module = build(
        make(method, 3), trunk=trunk, heads=heads, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01)
    )
    strategy = ModelParallelStrategy(processes, 1, save_distributed_checkpoint=not whole)
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy if processes > 1 else "auto",
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **keys,
    )
    trainer.fit(
        module, datamodule=Arrays(data, batch_size=8 // processes), ckpt_path=checkpoint, weights_only=True
    )
    return trainer


def parameters(trainer: Trainer) -> dict[str, Tensor]:
    """Return the unsharded parameters by name."""
    named = trainer.lightning_module.named_parameters()
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for name, p in named}


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    found = {case: parameters(fitted(case, 2)) for case in CASES}
    for whole in (True, False):
        trainer = fitted("Jacobian, clipped", 2, epochs=1, whole=whole)
        path = out.with_name(f"checkpoint-{whole}")
        trainer.save_checkpoint(path)
        trainer.strategy.barrier()
        found[f"resumed, whole={whole}"] = parameters(
            fitted("Jacobian, clipped", 2, checkpoint=path, whole=whole)
        )
    torch.save(found, f"{out}.{dist.get_rank()}")
