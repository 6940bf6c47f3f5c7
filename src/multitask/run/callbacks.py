"""Builds a run's callbacks from the config; refuses those that cannot work in this run."""

from hydra.utils import instantiate
from lightning import Callback
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    ProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig

from multitask.callbacks.solution import Solution
from multitask.callbacks.trajectory import Trajectory
from multitask.callbacks.update import UpdateDirection
from multitask.errors import ConfigError
from multitask.run.checks import callback_nodes
from multitask.run.sharding import is_sharded

_REFUSED: dict[type[Callback], str] = {
    BatchSizeFinder: (
        "trains to find a batch size, and the record would hold neither the size nor these steps; remove it and set "
        "data.batch_size"
    ),
    LearningRateFinder: (
        "trains to find a learning rate, and the record would hold neither the rate nor these steps; remove it and set "
        "optimizer.lr"
    ),
    GradientAccumulationScheduler: (
        "changes the accumulation from epoch to epoch, and a run accumulates the same number of batches throughout; "
        "remove it and set trainer.accumulate_grad_batches"
    ),
    ModelPruning: (
        "changes the weights after they were validated and keeps its masks in no checkpoint; remove it and prune the "
        "weights of best.ckpt after the run"
    ),
    BackboneFinetuning: (
        "freezes pl_module.backbone, which is pl_module.trunk here; subclass "
        "lightning.pytorch.callbacks.BaseFinetuning to freeze the trunk"
    ),
}


# Callbacks that read or write whole parameters or gradients.
_NEEDS_WHOLE_PARAMETERS = (
    BaseFinetuning,
    Solution,
    StochasticWeightAveraging,
    Trajectory,
    UpdateDirection,
    WeightAveraging,
)


def build_callbacks(config: DictConfig, automatic: bool) -> list[Callback]:
    """Build the callbacks of the group ``callbacks``; refuse those that cannot work in this run."""
    made = {key: instantiate(node, _convert_="all") for key, node in callback_nodes(config).items()}
    for key, callback in made.items():
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"{key} is a {type(callback).__name__}; give the _target_ of a lightning.pytorch.Callback."
            )
        for refused, reason in _REFUSED.items():
            if isinstance(callback, refused):
                raise ConfigError(f"{key} ({type(callback).__name__}) {reason}.")
        if isinstance(callback, SpikeDetection) and not automatic:
            raise ConfigError(
                f"{key} reads the one loss that a training step returns, and weighting={config.method} trains on "
                "several; remove it."
            )
        if isinstance(callback, _NEEDS_WHOLE_PARAMETERS) and is_sharded(config):
            raise ConfigError(
                f"{key} ({type(callback).__name__}) works on whole parameters, and with trainer=fsdp no process has "
                "them; remove it, or use trainer=ddp."
            )
        if isinstance(callback, StochasticWeightAveraging):
            _check_swa(key, config)
    _check_twice(made, config.trainer.enable_progress_bar)
    return list(made.values())


def _check_twice(callbacks: dict[str, Callback], progress: bool) -> None:
    """Refuse a second progress bar, and two callbacks whose states a checkpoint cannot tell apart."""
    bars = [key for key, callback in callbacks.items() if isinstance(callback, ProgressBar)]
    if progress and len(bars) > 1:
        raise ConfigError(f"{' and '.join(bars)} are progress bars, and a run has one; set {bars[0]}=null.")
    states: dict[str, str] = {}
    for key, callback in callbacks.items():
        has_state = is_overridden("state_dict", callback, Callback)
        if has_state and states.setdefault(callback.state_key, key) != key:
            raise ConfigError(
                f"{states[callback.state_key]} and {key} ({type(callback).__name__}) have the same state key, so a "
                f"checkpoint would keep the state of only one; set {key}=null, or give it other arguments."
            )


def _check_swa(key: str, config: DictConfig) -> None:
    instead = "use lightning.pytorch.callbacks.EMAWeightAveraging"
    if config.selection.metric is not None:
        raise ConfigError(
            f"{key} puts the averaged weights in place at the end, and selection.metric={config.selection.metric} "
            f"measures the weights of one epoch; set selection.metric=null, or {instead}, which is validated."
        )
    if config.ckpt_path is not None:
        # Its scheduler is made at the start of an epoch; a run that resumes within an epoch never makes it.
        raise ConfigError(
            f"{key} loses its schedule when a run is resumed; start the run again without ckpt_path, or {instead}, "
            "which resumes."
        )
