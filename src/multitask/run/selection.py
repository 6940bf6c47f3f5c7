"""Selects the weights that a run evaluates."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig

from multitask.lightning.module import MultiLossModule
from multitask.lightning.sharding import load_whole


@dataclass(frozen=True)
class Selected:
    """How the evaluated weights were in fact selected."""

    epoch: int
    rule: str
    """``<mode> <metric>``, or ``last``."""
    value: float | None = None
    """The metric's value, if it selected the weights."""
    note: str | None = None
    """Why the last weights are evaluated although a metric was set, in one sentence."""

    def facts(self) -> dict[str, Any]:
        """Return the entries of ``run.json``."""
        facts = {"epoch": self.epoch, "selection": self.rule, "selected_value": self.value}
        return facts | ({"selection_note": self.note} if self.note else {})


def rule_of(metric: str | None, mode: str) -> str:
    """Return the rule that the config asks for."""
    return f"{mode} {metric}" if metric else "last"


def select(module: MultiLossModule, trainer: Trainer, config: DictConfig) -> Selected:
    """Load the weights that validation selected; keep the last ones if it selected none."""
    metric, callback = config.selection.metric, trainer.checkpoint_callback
    if metric is None:
        return Selected(trainer.current_epoch, "last")
    path, score = getattr(callback, "best_model_path", ""), getattr(callback, "best_model_score", None)
    value = math.nan if score is None else float(score)
    if not path or not math.isfinite(value):
        why = _reason(module, trainer, metric)
        note = f"selection.metric={metric} chose no weights, since {why}; the last ones are evaluated."
        return Selected(trainer.current_epoch, "last", note=note)
    content = torch.load(path, map_location="cpu", weights_only=True)
    load_whole(module, content["state_dict"])
    return Selected(int(content["epoch"]) + 1, rule_of(metric, config.selection.mode), value)


def _reason(module: MultiLossModule, trainer: Trainer, metric: str) -> str:
    if trainer.checkpoint_callback is None:
        return "no callback saves the best"
    if getattr(trainer, "fast_dev_run", False):
        return "trainer.fast_dev_run saves none"
    return f"{metric} was never finite in validation" if module.validated else "the run had no validation"
