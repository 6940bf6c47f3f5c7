"""The job around a run: in a sweep it is done once, resumes where it stopped, and fails alone."""

import gc
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from multitask.errors import RunFailed, RunInterrupted, one_sentence
from multitask.run.cli import errors_as_sentences
from multitask.run.devices import take_gpu
from multitask.run.record import RunRecord
from multitask.sweep.claim import claimed, holder
from multitask.sweep.command import as_single_run
from multitask.sweep.rank import is_first
from multitask.sweep.state import COMPLETED, FAILED, read_record

# How long a stopped job waits for those beside it, in seconds: longer than saving a checkpoint takes.
_PATIENCE = 30.0


def run(config: DictConfig) -> float | None:
    """Train by a config.

    A job of a sweep is left alone where it has completed or is running elsewhere, and resumes from
    its last checkpoint where it was stopped.

    Returns:
        The value that chose the weights, or ``None`` where nothing chose or nothing was to be done.

    Raises:
        RunFailed: If a job of a sweep failed; ``run.json`` has the reason.
        SystemExit: If a job of a sweep was asked to stop: the sweep stops with it. Outside a sweep, for
            every error that one sentence explains.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or not is_first():
        with errors_as_sentences():
            from multitask.run.train import train

            return train(config)
    folder = Path(hydra.runtime.output_dir)
    try:
        with claimed(folder) as held:
            if not held:
                print(f"left alone: {folder.name} is run by {holder(folder)}")
                return None
            if read_record(folder).get("status") == COMPLETED:
                print(f"left alone: {folder.name} has completed")
                return None
            return _run(config, folder)
    except SystemExit:
        if not hydra.launcher._target_.endswith("BasicLauncher"):
            _let_others_save(folder)
        raise


def _run(config: DictConfig, folder: Path) -> float | None:
    _go_on(config, folder)
    take_gpu(config)
    # Cycles keep a run alive after its end: its data and its model, on a GPU too, beside those of this one.
    gc.collect()
    try:
        from multitask.run.train import train

        with as_single_run(config, folder):
            return train(config)
    except RunInterrupted as error:
        # Hydra takes any exception for a failed job and would start the next one.
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(128 + error.number) from error
    except Exception as error:
        sentence = one_sentence(error) or f"{type(error).__name__}: {error}"
        print(f"error: {folder.name}: {sentence}", file=sys.stderr)
        facts = {key: config[key] for key in ("method", "seed", "sweep")}
        facts |= {"experiment": config.experiment_name, "overrides": list(HydraConfig.get().overrides.task)}
        record_failure(folder, facts, sentence)
        # Not the error itself: it has to travel between processes, and many cannot.
        raise RunFailed(sentence) from error


def _let_others_save(folder: Path) -> None:
    """Wait for the jobs beside a stopped one: with the first that ends, their launcher kills the others."""
    until = time.monotonic() + _PATIENCE
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    while any(holder(other) is not None for other in others) and time.monotonic() < until:
        time.sleep(0.1)


def _go_on(config: DictConfig, folder: Path) -> None:
    """Let the run resume from the checkpoint that an earlier attempt left."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if checkpoint.is_file():
        print(f"resumes: {folder.name} from {checkpoint}")
        with read_write(config), open_dict(config):
            config.ckpt_path = str(checkpoint)


def record_failure(folder: Path, facts: Mapping[str, Any], sentence: str) -> None:
    """Write ``run.json`` with the status ``failed``, and these facts beside those that it has."""
    RunRecord(folder, {**facts, **read_record(folder)}).update(status=FAILED, error=sentence)
