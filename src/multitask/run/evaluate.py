"""Selects the weights of a run, and gives their losses and metrics as rows of ``results.csv`` and as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer
from omegaconf import DictConfig

from multitask.evaluation.names import COMBINED
from multitask.lightning.module import MultiLossModule
from multitask.lightning.sharding import load_whole
from multitask.run.data import Data, evaluation_data
from multitask.run.record import recipe_digest
from multitask.terminal import decimal, table, terminal
from multitask.weighting.base import Scalarization

Row = dict[str, Any]


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
        why = f"{metric} was never finite in validation" if module.validated else "the run had no validation"
        if callback is None:
            why = "no callback saves the best"
        elif getattr(trainer, "fast_dev_run", False):
            why = "trainer.fast_dev_run saves none"
        note = (
            f"selection.metric={metric} selected no checkpoint, since {why}; the last weights are evaluated."
        )
        return Selected(trainer.current_epoch, "last", note=note)
    content = torch.load(path, map_location="cpu", weights_only=True)
    load_whole(module, content["state_dict"])
    return Selected(int(content["epoch"]) + 1, rule_of(metric, config.selection.mode), value)


def evaluate(
    module: MultiLossModule,
    trainer: Trainer,
    data: Data,
    config: Mapping[str, Any],
    selected: Selected,
) -> list[Row]:
    """Evaluate the selected weights on ``evaluation.splits`` and return one row of ``results.csv`` per value."""
    rows: list[Row] = []
    known = {
        "method": config["method"],
        "seed": config["seed"],
        "experiment": config["experiment_name"],
        "variant": config["variant"],
        "sweep": config["sweep"],
        "run": Path(HydraConfig.get().runtime.output_dir).name,
        "epoch": selected.epoch,
        "selection": selected.rule,
    }

    def row(split: str, task: str, metric: str, value: float) -> Row:
        return known | {
            "task": task,
            "metric": metric,
            "split": split,
            "value": repr(value),
            "higher_is_better": module.higher_is_better(task, metric),
            "config_digest": recipe_digest(config, None if task == COMBINED else task),
        }

    for split in config["evaluation"]["splits"]:
        metrics = module.measure(trainer, evaluation_data(data, split), split)
        rows += [row(split, task, metric, value) for (task, metric), value in metrics.items()]
        whole = all((name, "loss") in metrics for name in module.names)
        if whole and isinstance(module.weighting, Scalarization) and module.weighting.fixed:
            losses = torch.tensor([metrics[name, "loss"] for name in module.names], device=module.device)
            with torch.no_grad():
                rows.append(row(split, COMBINED, "loss", float(module.weighting(losses))))
    return rows


def show(rows: Sequence[Row], split: str = "test") -> None:
    """Print a table of tasks and metrics on the test split, or on the last split if there is no test split.

    In a terminal that is too narrow, print one value per line.
    """
    shown = split if any(row["split"] == split for row in rows) else (rows[-1]["split"] if rows else split)
    chosen = [row for row in rows if row["split"] == shown]
    metrics = list(dict.fromkeys(row["metric"] for row in chosen))
    wide = table(f"{shown} set", ["task"], metrics)
    values = {(row["task"], row["metric"]): float(row["value"]) for row in chosen}
    for task in dict.fromkeys(row["task"] for row in chosen):
        wide.add_row(task, *(decimal(values[task, m]) if (task, m) in values else "" for m in metrics))
    console = terminal(file_width=None)
    if console.measure(wide, options=console.options.update(width=1000)).maximum > console.width:
        long = table(f"{shown} set", ("task", "metric"), ["value"])
        for (task, metric), value in values.items():
            long.add_row(task, metric, decimal(value))
        wide = long
    console.print(wide)
