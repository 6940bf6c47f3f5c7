"""Evaluates a checkpoint from the file alone."""

from contextlib import nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from multitask.run.build import build_data, build_module, build_trainer
from multitask.run.data import first_batch, temporary_trainer, training_data
from multitask.run.evaluate import Row, Selected, evaluate, rule_of, show
from multitask.run.model_choice import is_own
from multitask.run.record import save_config, write_results
from multitask.run.refusals import check_splits
from multitask.run.rehearsal import check_inference_mode
from multitask.run.resolvers import plain
from multitask.run.weights import load, opened


def evaluate_checkpoint(config: DictConfig) -> list[Row]:
    """Evaluate a checkpoint's weights on the splits, print the table and write ``results.csv``."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with open_dict(config):
        config.callbacks = config.logger = None
        config.trainer.enable_progress_bar = config.trainer.enable_model_summary = False
    with opened(config, "cannot be measured") as content:
        data = build_data(config)
        check_splits(config, data)
        module = build_module(config, data)
        load(module, content["state_dict"])
        with temporary_trainer(module, training_data(data)) if is_own(config) else nullcontext():
            check_inference_mode(config, module, first_batch(data, next(iter(data.splits)), module))
        trainer, _ = build_trainer(config, folder, module.automatic_optimization)
        # By the rule of the run if these weights were its best when they were saved.
        best = content.get("callbacks", {}).get("Checkpoints", {}).get("step") == content["global_step"]
        rule = rule_of(config.selection.metric if best else None, config.selection.mode)
        selected = Selected(int(content["epoch"]) + 1, rule)
        resolved = plain(config)
        rows = evaluate(module, trainer, data, resolved, selected)
        for row in rows:
            row["run"] = Path(config.trained.run_folder).name
        save_config(folder, resolved, list(HydraConfig.get().overrides.task))
        write_results(folder / "results.csv", rows)
    show(rows)
    print(folder)
    return rows
