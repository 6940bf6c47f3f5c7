"""Compares the optimizer's update with the tasks' gradients."""

from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from multitask.errors import ConfigError
from multitask.lightning.module import MultiLossModule
from multitask.lightning.parts import LossAndCount
from multitask.lightning.probing import unobtrusive
from multitask.metrics.precision import widest_float

_TINY = 1e-30


class UpdateDirection(Callback):
    """Logs ``update/cosine/<task>``: the cosine between the update of the parameters and a task's descent direction.

    The update is the change of the shared parameters in one step. It shows what momentum, preconditioning, weight
    decay and clipping leave of the weighting's direction: the cosine is 1 if the update follows the task's negative
    gradient, and negative if it increases the task's loss to first order. The gradients are those of the whole batch
    over all processes; with micro-batches, those of the first one.

    Args:
        every: The number of optimizer steps between two values; below 1 raises ``ConfigError``. Each value takes one
            more backward pass and the memory of one gradient per task.
    """

    def __init__(self, every: int = 20) -> None:
        if every < 1:
            raise ConfigError(f"callbacks.update.every={every} must be at least 1.")
        self.every = every
        self._before: tuple[int, list[Tensor], Tensor, Tensor, list[int]] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Compute the tasks' gradients before a step to be compared; see :func:`task_gradients`."""
        assert isinstance(pl_module, MultiLossModule)
        if trainer.global_step % self.every == 0 and batch_idx % pl_module.window == 0:
            shared, rows, present = task_gradients(pl_module, batch)
            self._before = (trainer.global_step, shared, _flat(shared), rows, present) if shared else None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the cosines once the optimizer step is taken."""
        assert isinstance(pl_module, MultiLossModule)
        if self._before is None or trainer.global_step == self._before[0]:
            return
        shared, before, rows, present = self._before[1:]
        self._before = None
        update = _flat(shared) - before
        lengths = (rows.norm(dim=1) * update.norm()).clamp(min=_TINY)
        pl_module.telemetry.add("update/cosine", -(rows @ update) / lengths, pl_module.names, present)


def task_gradients(module: MultiLossModule, batch: Any) -> tuple[list[Tensor], Tensor, list[int]]:
    """Return each loss's gradient with respect to the shared parameters, without side effects.

    Returns:
        The parameters; the gradients of the losses that are labelled on any process, ``[k, n]`` in float64; and the
        indices of these losses. A parameter is shared if several losses of this batch reach it on any process.

    Raises:
        ConfigError: If parameters are sharded over processes.
    """
    own = {id(p) for p in module.weighting.parameters()}
    trained = [p for p in module.parameters() if p.requires_grad and id(p) not in own]
    if any(hasattr(p, "to_local") for p in trained):
        raise ConfigError(
            "callbacks.update needs whole parameters, and these are sharded; remove the callback."
        )
    with unobtrusive(module, train=True), torch.enable_grad():
        given = module.losses(batch)
        losses = [_with_count(given.get(name)) for name in module.names]
        found = [
            torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
            if loss is not None and loss.requires_grad
            else [None] * len(trained)
            for loss, _ in losses
        ]
    device = trained[0].device if trained else module.device
    weight = torch.tensor([float(count) for _, count in losses], device=device)
    reached = torch.tensor([[g is not None for g in row] for row in found], dtype=torch.int64, device=device)
    total = weight.clone()
    if module.processes > 1:
        dist.all_reduce(total)
        dist.all_reduce(reached)
    several = ((reached > 0).sum(0) >= min(2, len(losses))).tolist()
    shared: list[Tensor] = list(compress(trained, several))
    chosen = [compress(zip(trained, row, strict=True), several) for row in found]
    rows = torch.stack([_flat([torch.zeros_like(p) if g is None else g for p, g in row]) for row in chosen])
    if module.processes > 1:
        rows *= (weight / total.clamp(min=_TINY))[:, None]
        dist.all_reduce(rows)
    present = (total > 0).nonzero().flatten().tolist()
    return shared, rows[present], present


def _with_count(loss: LossAndCount | None) -> tuple[Tensor | None, float | Tensor]:
    """Return a loss and its count: 0 if it is absent, 1 if it comes without one."""
    if loss is None:
        return None, 0.0
    return loss if isinstance(loss, tuple) else (loss, 1.0)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return a copy in one dimension and float64."""
    flat = [t.detach().to_dense().flatten().to(widest_float(t.device)) for t in tensors]
    return torch.cat(flat or [torch.empty(0)])
