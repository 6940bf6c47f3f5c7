"""Runs of the template in this process: from overrides to a trained module."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from lightning import Callback, Trainer
from omegaconf import DictConfig

from multitask.lightning.module import MultiLossModule
from multitask.run.build import build_data, build_module, build_trainer
from multitask.run.console import quiet
from multitask.run.data import Data, training_data
from multitask.run.resolvers import plain, register
from multitask.run.resume import check

CONFIGS = str(Path(__file__).parents[2] / "configs")
# Keys that a script sets, and keys that silence a run.
OUTSIDE = [
    *("method=x", "experiment_name=x", "variant=x", "sweep=null", "logger=csv"),
    *("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"),
]


def composed(*overrides: str) -> DictConfig:
    """Return the config of a run."""
    register()
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("train", overrides=[*OUTSIDE, *overrides])


def made(*overrides: str) -> tuple[DictConfig, Data, Any]:
    """Return a run's config, data and module."""
    config = composed("run_folder=x", *overrides)
    data = build_data(config)
    return config, data, build_module(config, data)


def trained(
    folder: Path, *overrides: str, resume: Path | None = None, first: Callback | None = None
) -> tuple[Any, Trainer]:
    """Train, from a checkpoint if given, with ``first`` before all callbacks; return the module and the Trainer."""
    quiet()
    folder.mkdir(parents=True, exist_ok=True)
    config = composed(f"run_folder={folder}", *overrides)
    data = build_data(config)
    module: MultiLossModule = build_module(config, data)
    trainer, _ = build_trainer(config, folder, module.automatic_optimization)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "check"):
            callback.check(module)
    if first is not None:
        trainer.callbacks.insert(0, first)  # type: ignore[attr-defined]
    if resume is not None:
        check(str(resume), plain(config)).begin(folder)
    trainer.fit(module, datamodule=training_data(data), ckpt_path=resume, weights_only=True)
    return module, trainer
