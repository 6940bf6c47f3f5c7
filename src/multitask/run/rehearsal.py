"""A training step on a few examples before the run, to find what only a backward pass in training mode shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from multitask.data.batches import examples_in, few_of, picked
from multitask.data.loading import Loader
from multitask.errors import ConfigError, on_one_line
from multitask.lightning.module import MultiLossModule
from multitask.lightning.probing import unobtrusive
from multitask.module import MultiTaskModule
from multitask.run.checks import callback_nodes
from multitask.run.data import Data, batches_taken
from multitask.run.devices import processes
from multitask.run.sharing import losses_of
from multitask.weighting.base import JacobianMethod


@contextmanager
def _as_in_training(module: nn.Module) -> Iterator[None]:
    """Set training mode and restore all state afterwards; a compiled trunk runs eagerly."""
    with unobtrusive(module, train=True), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        yield


def _by_task(config: DictConfig, module: MultiLossModule) -> list[str]:
    """Return the settings that would make gradients by task unnecessary; empty if none are needed."""
    settings = []
    if isinstance(module.weighting, JacobianMethod):
        settings.append("a scalarization such as weighting=weighted_sum")
    if config.trainer.accumulate_grad_batches > 1:
        settings.append("trainer.accumulate_grad_batches=1")
    probing = [key for key, node in callback_nodes(config).items() if node.get("probe_every")]
    return settings + [f"{key}.probe_every=null" for key in probing]


@dataclass
class Rehearsed:
    """The result of a backward pass."""

    sparse: list[str]
    """The parameters whose gradient is sparse."""
    unused: list[str]
    """The trained parameters that no loss reaches."""


def rehearse(config: DictConfig, module: MultiLossModule, batch: Any) -> Rehearsed:
    """Differentiate the losses of two training examples; refuse graphs that do not support gradients by task."""
    few = few_of(batch, 2)
    if not examples_in(few):
        return Rehearsed([], [])
    own = {id(p) for p in module.weighting.parameters()}
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad and id(p) not in own}
    by_task = _by_task(config, module)
    with _as_in_training(module):
        total = torch.stack([loss.float() for loss in losses_of(module, few).values()]).sum()
        if not total.requires_grad:
            return Rehearsed([], list(parameters))
        if not by_task:
            total.backward()
            found = [parameter.grad for parameter in parameters.values()]
            for parameter in parameters.values():
                parameter.grad = None
        else:
            try:
                found = list(torch.autograd.grad(total, list(parameters.values()), allow_unused=True))
            except RuntimeError as error:
                if "use_reentrant" not in str(error):
                    raise
                raise ConfigError(
                    "the trunk or a head calls torch.utils.checkpoint with use_reentrant=True, which allows no "
                    f"gradient by task; set use_reentrant=False in it, or use {' and '.join(by_task)}."
                ) from error
    gradients = dict(zip(parameters, found, strict=True))
    return Rehearsed(
        [name for name, g in gradients.items() if g is not None and g.layout != torch.strided],
        [name for name, g in gradients.items() if g is None],
    )


def check_inference_mode(config: DictConfig, module: MultiLossModule, batch: Any) -> None:
    """Refuse inference mode, which ``torch.enable_grad()`` does not leave, for losses that need derivatives."""
    if not config.trainer.get("inference_mode"):
        return
    eager = torch.compiler.set_stance("force_eager")
    try:
        with unobtrusive(module), eager, torch.inference_mode(), torch.enable_grad():
            losses_of(module, few_of(batch, 2))
    except (RuntimeError, ValueError) as error:
        with unobtrusive(module), torch.enable_grad():
            losses_of(module, few_of(batch, 2))  # raises if inference mode is not the cause
        raise ConfigError(
            "trainer.inference_mode=true records no graph in validation, and the losses or the model take "
            f"derivatives there ({on_one_line(error)}); set trainer.inference_mode=false."
        ) from error


def check_last_batch(config: DictConfig, module: MultiLossModule, data: Data, batch: Any) -> None:
    """Refuse a last batch that is too small to train on, such as one example with batch normalization."""
    loader = data.loader("train", training=True)
    if not isinstance(loader, Loader):
        return
    count = processes(config)
    smallest, batches = loader.smallest(count), len(loader)
    dropped = batches_taken(batches, config.trainer.limit_train_batches) < batches
    if smallest > 1 or (dropped and loader.batch_size > 1):
        return
    if getattr(module.weighting, "rows", "task") == "half" and loader.batch_size == 1:
        raise ConfigError(
            f"every batch has 1 example, and weighting={config.method} needs the losses of two halves of each, so that "
            "no step would be taken; raise data.batch_size=1."
        )
    few = picked(batch, torch.arange(smallest))
    try:
        graph = not isinstance(module, MultiTaskModule) or module.derivatives
        with _as_in_training(module), torch.set_grad_enabled(graph):
            if isinstance(module, MultiTaskModule):  # predictions only: so few examples may have no label
                seen = module.see(few)
                for name in module.by_name:
                    seen.predictions[name]
            elif examples_in(few) == smallest:
                module.losses(few)
    except (ValueError, RuntimeError, IndexError) as error:
        where = "an epoch's last batch has" if loader.batch_size > smallest else "every batch has"
        advice = "set data.drop_last=true, or another data.batch_size"
        if loader.batch_size == smallest:
            advice = f"raise data.batch_size={smallest}"
        raise ConfigError(
            f"{where} {smallest} example{'s' * (smallest != 1)}{' on one process' * (count > 1)}, which the model "
            f"cannot be trained on ({on_one_line(error)}); {advice}."
        ) from error
