"""Runs one job; in a sweep, a job runs once, resumes where it stopped, and its failure does not stop the others."""

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
from multitask.sweep.state import COMPLETED, FAILED, read_record
from multitask.system import is_first

# How long a stopped job waits for parallel jobs, in seconds: longer than saving a checkpoint takes.
_PATIENCE = 30.0


def run(config: DictConfig) -> float | None:
    """Train with a config; return the metric's value that selected the weights, or ``None`` if there is none.

    A job of a sweep is skipped if it has completed or another process runs it, and resumes from its last checkpoint
    if it was stopped.

    Raises:
        RunFailed: If a job of a sweep failed; ``run.json`` has the reason.
        SystemExit: If a job of a sweep received a signal, which stops the sweep too. Outside a sweep, for every error
            that one sentence explains.
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
                print(f"skipped: {folder.name} is run by {holder(folder)}")
                return None
            if read_record(folder).get("status") == COMPLETED:
                print(f"skipped: {folder.name} has completed")
                return None
            return _run(config, folder)
    except SystemExit:
        if not hydra.launcher._target_.endswith("BasicLauncher"):
            _let_others_save(folder)
        raise


def _run(config: DictConfig, folder: Path) -> float | None:
    _resume(config, folder)
    take_gpu(config)
    # Reference cycles keep the previous job's data and model in memory, on a GPU too.
    gc.collect()
    try:
        from multitask.run.train import train

        with as_single_run(config, folder):
            return train(config)
    except RunInterrupted as error:
        # Hydra treats any exception as a failed job and would start the next one.
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(128 + error.number) from error
    except Exception as error:
        sentence = one_sentence(error) or f"{type(error).__name__}: {error}"
        print(f"error: {folder.name}: {sentence}", file=sys.stderr)
        facts = {key: config[key] for key in ("method", "seed", "sweep")}
        facts |= {"experiment": config.experiment_name, "overrides": list(HydraConfig.get().overrides.task)}
        record_failure(folder, facts, sentence)
        # Not the error itself: many cannot be pickled, and it is passed between processes.
        raise RunFailed(sentence) from error


def _let_others_save(folder: Path) -> None:
    """Wait until parallel jobs have saved: their launcher kills them once the first one exits."""
    until = time.monotonic() + _PATIENCE
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    while any(holder(other) is not None for other in others) and time.monotonic() < until:
        time.sleep(0.1)


def _resume(config: DictConfig, folder: Path) -> None:
    """Set ``ckpt_path`` to the checkpoint of an earlier attempt, if there is one."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if checkpoint.is_file():
        print(f"resumes: {folder.name} from {checkpoint}")
        with read_write(config), open_dict(config):
            config.ckpt_path = str(checkpoint)


def record_failure(folder: Path, facts: Mapping[str, Any], sentence: str) -> None:
    """Write ``run.json`` with the status ``failed``, adding these facts to those it has."""
    RunRecord(folder, {**facts, **read_record(folder)}).update(status=FAILED, error=sentence)
