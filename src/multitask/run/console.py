"""Console output of a run: the config, a summary of the model, and no library noise."""

import logging
import warnings
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
import yaml
from rich.tree import Tree
from torch import nn

from multitask.data.batches import few_of
from multitask.lightning.module import MultiLossModule
from multitask.lightning.probing import unobtrusive
from multitask.run.sharing import losses_of, parts_of, users_of
from multitask.terminal import table, terminal

# Warnings that a user of this template cannot act on.
_NOISE = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*smaller than the logging interval.*",
    r".*does not have many workers.*",
    r".*Total length of `list` across ranks is zero.*",
    r".*You requested to overfit but enabled .* dataloader shuffling.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*`lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",
)


def quiet() -> None:
    """Suppress library messages and the warnings that a user cannot act on."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # Hydra's root handler prints the rest
    for pattern in _NOISE:
        warnings.filterwarnings("ignore", message=pattern)


def show_config(config: Mapping[str, Any]) -> None:
    """Print a resolved config as a tree with one branch per group."""
    tree = Tree("config")
    for key, value in config.items():
        if isinstance(value, Mapping | list) and value:
            tree.add(key).add(yaml.safe_dump(value, sort_keys=False).rstrip())
        else:
            tree.add(f"{key}: {yaml.safe_dump(value).removesuffix('...' + chr(10)).rstrip()}")
    terminal().print(tree)


def summarize(module: MultiLossModule, batch: Any) -> None:
    """Print the parts of the model and the tasks that use each, as found in the graph of a forward pass on a batch."""
    shown = table("model", ("part", "type", "used by"), ("parameters", "trained"))
    with unobtrusive(module), torch.enable_grad():
        losses = losses_of(module, few_of(batch, 2))
        parts = parts_of(module, losses)
    for part in parts:
        inside = reduce(getattr, part.name.split("."), module)
        shown.add_row(part.name, _type(inside), users_of(part, len(losses)), *_counts(inside))
    shown.add_row("weighting", _type(module.weighting), "", *_counts(module.weighting))
    shown.add_section()
    shown.add_row("total", "", "", *_counts(module))
    terminal(file_width=None).print(shown)


def _type(part: nn.Module | nn.Parameter) -> str:
    return type(getattr(part, "method", part)).__name__


def _counts(part: nn.Module | nn.Parameter) -> tuple[str, str]:
    every = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
    trained = sum(p.numel() for p in every if p.requires_grad)
    return f"{sum(p.numel() for p in every):,}", f"{trained:,}"
