"""Selection of the weights that a run's figures are of."""

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
    """The weights that are measured, as they were chosen and not as they were meant to be."""

    epoch: int
    rule: str
    """``<mode> <metric>``, or ``last``."""
    value: float | None = None
    """The metric's value, where it chose."""
    note: str | None = None
    """Why the last weights are measured where a metric was to choose, in one sentence."""

    def facts(self) -> dict[str, Any]:
        """Return what ``run.json`` keeps of it."""
        facts = {"epoch": self.epoch, "selection": self.rule, "selected_value": self.value}
        return facts | ({"selection_note": self.note} if self.note else {})


def rule_of(metric: str | None, mode: str) -> str:
    """Return the rule that the config asks for."""
    return f"{mode} {metric}" if metric else "last"


def select(module: MultiLossModule, trainer: Trainer, config: DictConfig) -> Selected:
    """Load the weights that validation chose; the last ones stay where nothing chose."""
    metric, callback = config.selection.metric, trainer.checkpoint_callback
    if metric is None:
        return Selected(trainer.current_epoch, "last")
    path, score = getattr(callback, "best_model_path", ""), getattr(callback, "best_model_score", None)
    value = math.nan if score is None else float(score)
    if not path or not math.isfinite(value):
        why = _reason(module, trainer, metric)
        note = f"selection.metric={metric} chose no weights, since {why}; the last ones are measured."
        return Selected(trainer.current_epoch, "last", note=note)
    content = torch.load(path, map_location="cpu", weights_only=True)
    load_whole(module, content["state_dict"])
    return Selected(int(content["epoch"]) + 1, rule_of(metric, config.selection.mode), value)


def _reason(module: MultiLossModule, trainer: Trainer, metric: str) -> str:
    if trainer.checkpoint_callback is None:
        return "no callback keeps the best"
    if getattr(trainer, "fast_dev_run", False):
        return "trainer.fast_dev_run keeps none"
    return f"{metric} was finite in no validation" if module.validated else "the run had no validation"
