"""Trains on two Gloo processes and saves the parameters: ``python -m tests.unit.run_distributed OUT``."""

import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from lightning import Trainer
from torch import Tensor, nn

from multitask.gradients import rows as rows_of_processes
from multitask.gradients.features import Features
from multitask.module import MultiTaskModule
from tests.conftest import Arrays, arrays, build, regression
from tests.unit.task.test_term import data as data_of_kinds
from tests.unit.task.test_term import kinds
from tests.unit.weighting.members import NEEDS_THREE, make, number_of_tasks
from tests.unit.weighting.promises import HALVES, is_jacobian_method, keeping

METHODS = keeping("batch")
# Wrappers, engines and gradients of heads.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "features": ("upgrad", {"engine": Features}),
    "features, two halves": ("modo", {"engine": Features}),
    "weighted heads": ("upgrad", {"weighted_heads": True}),
    "weighted heads, two halves": ("modo", {"weighted_heads": True}),
    "every": ("mgda", {"every": 2}),
    "groups": ("upgrad", {"groups": "layer"}),
    "rescale": ("trimmed_mean", {"rescale": True}),
    "scalarization": ("famo", {"rescale": True}),
}
# Each kind of loss with a Jacobian method, and with a scalarization in Lightning's automatic optimization.
KINDS = [(kind, name) for kind in kinds() if kind != "features" for name in ("upgrad", "uw")]
JACOBIAN_METHODS = [name for name in METHODS if is_jacobian_method(name)]


def train(
    method: str,
    batch_size: int | None,
    accumulate: int = 1,
    *,
    whole: bool = False,
    variant: str | None = None,
    epochs: int = 2,
    **trainer: object,
) -> dict[str, Tensor]:
    """Train on uneven batches; one task has labels only in some batches and on some processes.

    Args:
        method: The member.
        batch_size: Examples per process and batch.
        accumulate: Micro-batches per step.
        whole: Whether all labels are present and one batch holds all examples.
        variant: A key of ``VARIANTS``.
        epochs: Number of epochs.
        trainer: Further arguments of the Trainer.
    """
    torch.manual_seed(0)
    tasks = number_of_tasks(method)
    options = dict(VARIANTS[variant][1]) if variant else {}
    build_options = {key: options.pop(key) for key in ("engine", "weighted_heads") if key in options}
    if "engine" in build_options:
        build_options["engine"] = build_options["engine"]()
    combiner = make(method, tasks, **options)
    # The halves of a batch are those of its parts only if the parts have an even size.
    data = arrays(tasks, count=24 if method in HALVES or whole else 17)
    if method not in NEEDS_THREE and not whole:
        data["t1"][12:] = torch.nan
    heads = {f"t{i}": regression(f"t{i}", missing=not whole) for i in range(tasks)}
    trunk = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    module = build(combiner, trunk=trunk, heads=heads, accumulate_grad_batches=accumulate, **build_options)
    return _fitted(module, Arrays(data, batch_size=batch_size), epochs, trainer)


def train_kind(kind: str, name: str, batch_size: int, **trainer: object) -> dict[str, Tensor]:
    """Train on a kind of loss of :mod:`tests.unit.task.test_term`."""
    trunk, tasks = kinds()[kind]
    module = build(make(name, len(tasks)), trunk=trunk, heads=tasks)  # type: ignore[arg-type]
    return _fitted(module, Arrays(data_of_kinds(), batch_size=batch_size), 2, trainer)


def _fitted(
    module: MultiTaskModule, data: Arrays, epochs: int, trainer: dict[str, object]
) -> dict[str, Tensor]:
    runner = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,  # type: ignore[arg-type]
    )
    runner.fit(module, datamodule=data)
    return {name: p.detach().clone() for name, p in module.named_parameters()}


class Wire:
    """Counts the elements passed to collectives, by kind."""

    def __init__(self) -> None:
        self.numbers: Counter[str] = Counter()
        self._reduce_scatter, self._all_gather = (
            rows_of_processes._reduce_scatter,
            rows_of_processes._all_gather,
        )
        self._all_reduce = dist.all_reduce

    def __enter__(self) -> "Wire":
        rows_of_processes._reduce_scatter = self._counted("reduce_scatter", self._reduce_scatter, 1)
        rows_of_processes._all_gather = self._counted("all_gather", self._all_gather, 0)
        dist.all_reduce = self._counted("all_reduce", self._all_reduce, 0)
        return self

    def __exit__(self, *args: object) -> None:
        rows_of_processes._reduce_scatter, rows_of_processes._all_gather = (
            self._reduce_scatter,
            self._all_gather,
        )
        dist.all_reduce = self._all_reduce

    def _counted(self, kind: str, collective: Any, position: int) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.numbers[kind] += args[position].numel()
            return collective(*args, **options)

        return call


if __name__ == "__main__":
    torch.set_num_threads(1)
    two = {"strategy": "ddp", "devices": 2}
    found: dict[tuple, Any] = {}
    for name in METHODS:
        for accumulate in (1, 2):
            found[name, accumulate] = train(name, 4, accumulate, **two)
    for variant, (name, _) in VARIANTS.items():
        found[variant, 2] = train(name, 4, 2, variant=variant, **two)
    for kind, name in KINDS:
        found["kind", kind, name] = train_kind(kind, name, 4, **two)
    for name in JACOBIAN_METHODS:
        with Wire() as wire:
            train(name, None, whole=True, epochs=1, **two)
        found["wire", name] = dict(wire.numbers)
    torch.save(found, f"{sys.argv[1]}.{dist.get_rank()}")
