"""One training run: build, fit, evaluate, record."""

import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer, seed_everything
from omegaconf import DictConfig

from multitask.callbacks.cost import Cost
from multitask.callbacks.interruption import Interruption
from multitask.errors import ConfigError, RunFailed, explained, one_sentence
from multitask.gradients.auto_memory import AutoMemory, free_memory
from multitask.lightning.curves import MetricsCsv, carry_over
from multitask.lightning.module import MultiLossModule
from multitask.run import resume, tracking
from multitask.run.build import build_data, build_module, build_trainer
from multitask.run.checks import reduce_config
from multitask.run.console import quiet, show_config, summarize
from multitask.run.data import Data, first_batch, resumption_of, temporary_trainer, training_data
from multitask.run.evaluate import evaluate, rule_of, select, show
from multitask.run.model_choice import is_own
from multitask.run.optimizer_checks import check_optimizer
from multitask.run.record import (
    RunRecord,
    git_commit,
    package_versions,
    recipe_digest,
    save_config,
    write_results,
)
from multitask.run.refusals import check_against_data, check_hardware, check_intervals, check_rounding
from multitask.run.rehearsal import check_inference_mode, check_last_batch, rehearse
from multitask.run.resolvers import plain
from multitask.run.targets import check_targets
from multitask.run.task_check import check_tasks
from multitask.run.weights import load_initial


def train(config: DictConfig) -> float | None:
    """Train, select the weights, evaluate them, and write everything to the run's folder.

    Returns:
        The metric's value that selected the weights, or ``None`` if no metric did.

    Raises:
        ConfigError: If the config cannot work; no folder is left behind.
        RunFailed: If the run ended early.
        RunInterrupted: If a signal stopped it.
    """
    reduce_config(config, is_own(config))
    folder = Path(HydraConfig.get().runtime.output_dir)
    run = _build(config, folder)
    interruption, trainer, module = run.interruption, run.trainer, run.module
    resolved, overrides = run.config, list(HydraConfig.get().overrides.task)
    record = RunRecord(folder, {**_facts(resolved, overrides, module), "resume": resumption_of(run.data)})
    status: dict[str, Any] = {"status": "failed"}
    start = time.monotonic()
    interruption.listen()
    try:
        if trainer.is_global_zero:
            _begin(resolved, folder, record, run)
            if config.print_config:
                show_config(resolved)
            if config.trainer.enable_model_summary and not config.task_check:  # which has printed it
                summarize(module, run.batch)
        trainer.fit(module, datamodule=training_data(run.data), ckpt_path=config.ckpt_path, weights_only=True)
        if trainer.is_global_zero and (profile := trainer.profiler.summary()):  # type: ignore[attr-defined]
            print(profile)
        chosen = select(module, trainer, config)
        rows = evaluate(module, trainer, run.data, resolved, chosen)
        status = {"status": "completed", **chosen.facts()}
        if trainer.is_global_zero:
            write_results(folder / "results.csv", rows)
            show(rows)
            if chosen.note:
                print(f"warning: {chosen.note}", file=sys.stderr)
        return chosen.value
    except Exception as error:
        sentence = one_sentence(error)
        if isinstance(error, FloatingPointError) and interruption.checkpoint is not None:
            sentence = (
                f"{sentence} The last state before it is {interruption.checkpoint}; if the step before already "
                "diverged, lower optimizer.lr and start again."
            )
        status["error"] = sentence or f"{type(error).__name__}: {error}"
        if sentence is None:
            traceback.print_exc()
        raise RunFailed(status["error"]) from error
    except BaseException as error:  # RunInterrupted, KeyboardInterrupt, SystemExit
        status = {"status": "interrupted", "error": one_sentence(error) or f"{type(error).__name__}: {error}"}
        raise
    finally:
        interruption.close()
        _end(run, record, status, folder, time.monotonic() - start)
        interruption.stop_listening()


@dataclass
class _Run:
    """The objects of a run."""

    config: dict[str, Any]
    """Resolved."""
    data: Data
    module: MultiLossModule
    batch: Any
    """A training batch."""
    trainer: Trainer
    interruption: Interruption
    resumption: resume.Resumption | None


def _build(config: DictConfig, folder: Path) -> _Run:
    """Build the objects; raise errors of the config in one sentence, and leave no folder behind."""
    was_empty = not folder.is_dir() or not any(folder.iterdir())
    quiet()
    try:
        torch.set_float32_matmul_precision(config.matmul_precision)
        check_hardware(config)
        resolved = plain(config)  # once: resolving is slow
        check_targets(resolved)
        seed_everything(config.seed, workers=True, verbose=False)
        data = build_data(config)
        if "train" not in data.splits:
            raise ConfigError(
                f"data has no training examples, only {', '.join(data.splits)}; give data.split a share for them."
            )
        module = build_module(config, data)
        check_against_data(config, data, module)
        check_rounding(config, module)
        check_intervals(config, data)
        batch = first_batch(data, "train", module)
        with temporary_trainer(module, training_data(data)) if is_own(config) else nullcontext():
            check_last_batch(config, module, data, batch)
            rehearsed = rehearse(config, module, batch)
            check_inference_mode(config, module, batch)
        check_optimizer(config, module, rehearsed.sparse)
        if config.task_check:
            check_tasks(module, data)
        if config.init_from:
            load_initial(module, config.init_from)
        resumption = resume.check(config.ckpt_path, resolved) if config.ckpt_path else None
        trainer, interruption = build_trainer(
            config, folder, module.automatic_optimization, unused=bool(rehearsed.unused)
        )
        if isinstance(module.engine, AutoMemory):
            free_memory(trainer.strategy.root_device)  # raises where it is unknown
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "check"):
                callback.check(module)
    except Exception as error:
        if (
            folder.is_dir()
            and was_empty
            and not any(p.is_dir() or p.stat().st_size for p in folder.iterdir())
        ):
            shutil.rmtree(folder)  # which has nothing but an empty log of this run
        sentence = explained(error, OSError, ValueError, TypeError)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error
    return _Run(resolved, data, module, batch, trainer, interruption, resumption)


def _begin(config: Mapping[str, Any], folder: Path, record: RunRecord, run: _Run) -> None:
    """Write the facts known at the start, and open the loggers' runs with them."""
    save_config(folder, config, record.facts["overrides"])
    if run.resumption is not None:
        run.resumption.begin(folder)
        record.update(resumed_from=str(run.resumption.path))
    else:
        carry_over(folder / "metrics.csv", folder / "metrics.csv", count=0)
    record.update(status="running")
    if record.facts["resume"] != "exact":
        print(f"warning: {record.facts['resume']}.", file=sys.stderr)
    for logger in run.trainer.loggers:
        if isinstance(logger, MetricsCsv) and "val" in run.data.splits:
            logger.expect(run.module.validation_keys)
    known = {key: record.facts[key] for key in ("overrides", "git_commit", "versions")}
    tracking.start(run.trainer.loggers, {**config, **known})


def _end(run: _Run, record: RunRecord, status: Mapping[str, Any], folder: Path, seconds: float) -> None:
    """Close the loggers and the record; the folder is the last line printed."""
    completed = status["status"] == "completed"
    trainer = run.trainer
    try:
        run.module.telemetry.flush(run.module)
        for logger in trainer.loggers:
            logger.finalize("success" if completed else "failed")
    finally:
        tracking.finish(0 if completed else 1, trainer.loggers)
        if trainer.is_global_zero:
            cost = next((each.facts() for each in trainer.callbacks if isinstance(each, Cost)), {})  # type: ignore[attr-defined]
            engine = run.module.engine
            memory = {"memory": engine.choice} if isinstance(engine, AutoMemory) else {}
            record.update(**status, seconds=round(seconds, 2), steps=trainer.global_step, **cost, **memory)
            print(folder)


def _facts(config: Mapping[str, Any], overrides: list[str], module: MultiLossModule) -> dict[str, Any]:
    selection = config["selection"]
    return {
        "method": config["method"],
        "experiment": config["experiment_name"],
        "seed": config["seed"],
        "sweep": config["sweep"],
        "tags": config["tags"] or [],
        "selection": rule_of(selection["metric"], selection["mode"]),
        "config_digest": recipe_digest(config),
        "multiplicative": config["evaluation"]["multiplicative"],
        "overrides": overrides,
        "parameters": sum(p.numel() for p in module.parameters()),
        "git_commit": git_commit(Path(config["paths"]["root"])),
        "versions": package_versions(),
    }
