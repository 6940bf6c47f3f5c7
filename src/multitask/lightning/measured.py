"""Mean losses and metrics on the validation split and other splits."""

import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from multitask.gradients.losses import Counts
from multitask.lightning.means import MeanLosses
from multitask.lightning.metric_keys import TaskMetrics, from_keys, to_keys, val_keys
from multitask.metrics.precision import widest_float
from multitask.private import log_results


class MeasuredModule(LightningModule):
    """A LightningModule that measures mean losses in validation and test, weighted by the batches' counts."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: dict[str, float] = {}
        """The values logged by the last validation, and its epoch; undefined values are absent."""
        self.seen_keys: set[str] | None = None
        """The keys that a subclass logged itself in a validation; ``None`` before the first."""
        self.names: list[str] = []
        """The losses' names, in order; set by the first batch unless given."""
        self._means = MeanLosses()

    def named_losses(self, batch: Any) -> tuple[dict[str, Tensor], Counts]:
        """Return the losses of a batch in the order of :attr:`names`, and their counts."""
        raise NotImplementedError

    def _graph(self) -> AbstractContextManager[object]:
        """Return the context of losses in evaluation: with a graph, since they may need derivatives."""
        return torch.enable_grad()

    def on_validation_start(self) -> None:
        """Broadcast the running statistics of the first process, which checkpoints contain."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the mean losses of the validation split; subclasses may override it."""
        self.add_measured(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the mean losses of the split passed to :meth:`measure`."""
        self.add_measured(batch)

    def add_measured(self, batch: Any) -> None:
        """Add a batch to the measurement."""
        with self._graph():
            self._means.add(*self.named_losses(batch))

    def measured(self) -> TaskMetrics:
        """Return the measurement since the last call, over all processes."""
        metrics, self._means = self._means.metrics(), MeanLosses()
        return metrics

    def on_validation_epoch_end(self) -> None:
        """Log losses and metrics of the validation split, and keep them for schedulers and callbacks."""
        values = to_keys(self.measured(), "val")
        if not self.trainer.sanity_checking:
            self.validated = {"epoch": self.current_epoch} | values
        self._log(values)
        for key in self.validation_keys - values.keys():
            # Lightning keeps the value of the previous validation, which its callbacks would take as current.
            self.trainer.callback_metrics[key] = torch.tensor(torch.nan)

    def on_validation_end(self) -> None:
        """Keep the values that a subclass has logged itself."""
        if not self.trainer.sanity_checking:
            own = {k: float(v) for k, v in self.trainer.callback_metrics.items() if not k.startswith("train")}
            self.validated = {k: v for k, v in own.items() if v == v} | self.validated

    def on_test_epoch_end(self) -> None:
        """Log losses and metrics of the tested split."""
        self._log(to_keys(self.measured(), "test"))

    def _log(self, values: Mapping[str, float]) -> None:
        tensors = torch.tensor(list(values.values()), dtype=widest_float(self.device), device=self.device)
        # lightning 2.6.6 logs at the number of batches under manual optimization, even if fewer steps were taken.
        by_step = self.trainer.state.fn == "fit"
        self.log_dict(
            dict(zip(values, tensors, strict=True)),
            logger=False if by_step else None,
            sync_dist=self.trainer.world_size > 1,
        )
        if by_step and values and not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics(
                    {**values, "epoch": self.current_epoch}, step=max(0, self.trainer.global_step - 1)
                )

    def measure(self, trainer: Trainer, data: Any, split: str) -> dict[tuple[str, str], float]:
        """Return losses and metrics of the current model on a split, by task and metric.

        Values that a subclass logs as ``test/<task>/<metric>`` and ``test/loss/<task>`` are included. Splits other than
        ``test`` are logged under ``final/<split>``, separately from their curves. ``data`` is the split's loader, or a
        data module whose test split it is.
        """
        source = {"datamodule" if isinstance(data, LightningDataModule) else "dataloaders": data}
        extra = [_LossesOfOwnTest()] if is_overridden("test_step", self, MeasuredModule) else []
        loggers, trainer.loggers = trainer.loggers, []
        trainer.callbacks += extra  # type: ignore[attr-defined]
        try:
            by_loader = trainer.test(self, verbose=False, **source)
        finally:
            trainer.loggers = loggers
            for callback in extra:
                trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
        values: dict[str, float] = {}
        for results in (*(to_keys(callback.metrics, "test") for callback in extra), *by_loader):
            values |= results
        if split != "test":
            values = {f"final/{split}/{key.removeprefix('test/')}": value for key, value in values.items()}
        log_results(trainer, values)
        return from_keys(values)

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """Return whether higher values of a metric are better; ``None`` if unknown."""
        return False if metric == "loss" else None

    def keys_of(self, names: Iterable[str]) -> set[str]:
        """Return the known keys that validation logs if these losses have labels."""
        return val_keys((name, "loss") for name in names)

    @property
    def validation_keys(self) -> set[str]:
        """The known keys that validation logs if all losses have labels."""
        own = is_overridden("validation_step", self, MeasuredModule)
        known = (self.seen_keys or set()) if own else self.keys_of(self.names)
        return known | (self.validated.keys() - {"epoch"})


class _LossesOfOwnTest(Callback):
    """Computes the losses after a module's own test step, so that every run records them.

    If the losses of a batch cannot be computed, for example without labels, they are omitted with one warning.
    """

    def __init__(self) -> None:
        self.metrics: TaskMetrics = {}
        self._means = MeanLosses()
        self._failed = False

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        if self._failed:
            return
        try:
            with torch.enable_grad():
                losses, counts = pl_module.named_losses(batch)
        except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
            self._failed = True
            print(
                f"warning: the model has its own test step, and losses(batch) fails on its batches "
                f"({type(error).__name__}: {error}); the record has no losses of this split.",
                file=sys.stderr,
            )
            return
        self._means.add(losses, counts)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._failed:
            self.metrics = self._means.metrics()
