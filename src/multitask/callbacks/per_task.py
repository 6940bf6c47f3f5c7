"""Early stopping and best weights for each task, by its own metric."""

import math
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer

from multitask.callbacks.checkpoints import Checkpoints
from multitask.callbacks.switching import check_switching
from multitask.errors import ConfigError, check_names, choices
from multitask.lightning.metric_keys import to_keys
from multitask.lightning.module import MultiLossModule


class PerTask(Callback):
    """Keeps the best weights for each task, and ends a task that no longer improves.

    ``best_<task>.ckpt`` is saved beside best.ckpt. From the next step on, a task that has ended is absent from
    training, so that its head does not change; it is still evaluated. The run stops once all tasks have ended.

    Args:
        metric: The validation metric of each task, ``loss`` or a name in ``tasks.*.metrics``.
        metrics: Other metrics, by task.
        patience: The number of validations without improvement, at least 1, after which a task ends; ``None``: never.
        min_delta: The smallest change, at least 0, that counts as an improvement.
        freeze: Whether a task that has ended stops training; otherwise it trains until all have ended.

    Raises:
        ConfigError: If a value is out of range.
    """

    def __init__(
        self,
        metric: str = "loss",
        metrics: Mapping[str, str] | None = None,
        patience: int | None = 5,
        min_delta: float = 0.0,
        freeze: bool = True,
    ) -> None:
        if patience is not None and patience < 1:
            raise ConfigError(f"callbacks.per_task.patience={patience} must be at least 1, or null.")
        if min_delta < 0:
            raise ConfigError(f"callbacks.per_task.min_delta={min_delta} must be at least 0.")
        self.metric = metric
        self.metrics = dict(metrics or {})
        self.patience = math.inf if patience is None else patience
        self.min_delta = min_delta
        self.freeze = freeze and patience is not None
        self._watched: dict[str, tuple[str, float]] = {}
        """The key of each task's metric, and 1 if higher is better, otherwise −1."""
        self._best: dict[str, float] = {}
        self._mark: dict[str, float] = {}
        """The value from which the next improvement is measured."""
        self._waited: dict[str, int] = {}

    @property
    def ended(self) -> list[str]:
        """The tasks that have ended."""
        return [name for name in self._watched if self._waited.get(name, 0) >= self.patience]

    def check(self, module: LightningModule) -> None:
        """Find the metric of each task, and whether higher is better.

        Raises ``ConfigError`` if a task has no such metric, or the metric does not define whether higher is better.
        """
        assert isinstance(module, MultiLossModule)
        if self.freeze:
            check_switching("callbacks.per_task", module)
        check_names("callbacks.per_task.metrics", self.metrics, module.names)
        for name in module.names:
            metric = self.metrics.get(name, self.metric)
            key, *_ = to_keys({(name, metric): 0.0}, "val")
            where = f"callbacks.per_task.{f'metrics.{name}' if name in self.metrics else 'metric'}={metric}"
            if key not in module.validation_keys:
                own = {key.rpartition("/")[2] for key in module.keys_of([name]) if f"/{name}/" in key}
                raise ConfigError(
                    f"{where} is not a metric of the task {name}; {choices(metric, {*own, 'loss'})}"
                )
            higher = module.higher_is_better(name, metric)
            if higher is None:
                raise ConfigError(
                    f"{where} does not define whether higher is better; choose another metric of the task {name}."
                )
            self._watched[name] = (key, 1.0 if higher else -1.0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module, unless it was checked before; raise ``ConfigError`` if no callback saves checkpoints."""
        if not self._watched:
            self.check(pl_module)
        if stage == "fit":
            self._checkpoints(trainer)

    @staticmethod
    def _checkpoints(trainer: Trainer) -> Checkpoints:
        found = [each for each in trainer.checkpoint_callbacks if isinstance(each, Checkpoints)]
        if not found:
            raise ConfigError(
                "callbacks.per_task saves weights through callbacks.checkpoint, which is off; turn it on, or set "
                "callbacks.per_task=null."
            )
        return found[0]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once if the run had ended before the checkpoint; raise ``ConfigError`` without validation."""
        if not trainer.enable_validation:
            raise ConfigError(
                "callbacks.per_task needs validation, and there is none; set callbacks.per_task=null, or validate."
            )
        self._stop_if_done(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Switch off tasks that have ended, at the start of an optimizer step."""
        assert isinstance(pl_module, MultiLossModule)
        if self.freeze and batch_idx % pl_module.window == 0:
            ended = self.ended
            pl_module.switch_off("per_task", ended if len(ended) < len(self._watched) else ())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update each task that has not ended; a validation without a value of its metric does not count."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, MultiLossModule)
        ended = self.ended
        for name, (key, sign) in self._watched.items():
            if name in ended or key not in pl_module.validated:
                continue
            score = sign * pl_module.validated[key]
            if score > self._best.get(name, -math.inf):
                self._best[name] = score
                self._checkpoints(trainer).keep(trainer, f"best_{name}.ckpt")
            if score > self._mark.get(name, -math.inf) + self.min_delta:
                self._mark[name] = score
                self._waited[name] = 0
            else:
                self._waited[name] = self._waited.get(name, 0) + 1
        self._stop_if_done(trainer)

    def _stop_if_done(self, trainer: Trainer) -> None:
        if len(self.ended) == len(self._watched):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the best scores, and the number of validations since."""
        return {"best": self._best, "mark": self._mark, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore scores and counts; patience stays as configured."""
        self._best, self._mark, self._waited = (dict(state_dict[key]) for key in ("best", "mark", "waited"))
