"""Means of losses, and metrics, over the validation split and any other."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from multitask.gradients.window import Counts
from multitask.lightning.figures import Figures, logged, read
from multitask.lightning.losses_beside import LossesBeside
from multitask.lightning.means import MeanLosses
from multitask.private import log_results


class MeasuredModule(LightningModule):
    """A LightningModule whose losses are measured in validation and test, whatever the sizes of the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: dict[str, float] = {}
        """The values that the last validation logged, and its epoch; a figure without a value is absent."""
        self.seen_keys: set[str] | None = None
        """The keys that a validation was seen to log, where a subclass logs by itself; ``None`` before one."""
        self.names: list[str] = []
        """The losses' names, in their order; set by the first batch unless given."""
        self._means = MeanLosses()

    def named_losses(self, batch: Any) -> tuple[dict[str, Tensor], Counts]:
        """Return the losses of a batch in the order of :attr:`names`, and their counts."""
        raise NotImplementedError

    def _graph(self) -> AbstractContextManager[object]:
        """Return a context for losses that no step follows: with a graph, since they may be of derivatives."""
        return torch.enable_grad()

    def on_validation_start(self) -> None:
        """Measure by the first process's running statistics: those that a checkpoint holds."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the mean losses of the validation split; a subclass may measure otherwise."""
        self.add_measured(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the mean losses of the split that :meth:`measure` measures."""
        self.add_measured(batch)

    def add_measured(self, batch: Any) -> None:
        """Add a batch to what is measured."""
        with self._graph():
            losses, counts = self.named_losses(batch)
        self._means.add({name: loss.detach() for name, loss in losses.items()}, counts)

    def measured(self) -> Figures:
        """Return what was measured since the last call, over all processes."""
        means, self._means = self._means.by_name(), MeanLosses()
        return {(name, "loss"): value for name, value in means.items()}

    def on_validation_epoch_end(self) -> None:
        """Log losses and metrics of the validation split, and keep them for what watches one."""
        found = logged(self.measured(), "val")
        if not self.trainer.sanity_checking:
            self.validated = {"epoch": self.current_epoch} | found
        self._log(found)
        for key in self.validation_keys - found.keys():
            # Lightning keeps what the validation before gave, and its callbacks would take that for news.
            self.trainer.callback_metrics[key] = torch.tensor(torch.nan)

    def on_validation_end(self) -> None:
        """Keep what a subclass has logged by itself."""
        if not self.trainer.sanity_checking:
            own = {k: float(v) for k, v in self.trainer.callback_metrics.items() if not k.startswith("train")}
            self.validated = {k: v for k, v in own.items() if v == v} | self.validated

    def on_test_epoch_end(self) -> None:
        """Log losses and metrics of the split that is tested."""
        self._log(logged(self.measured(), "test"))

    def _log(self, found: Mapping[str, float]) -> None:
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        values = torch.tensor(list(found.values()), dtype=precise, device=self.device)
        self.log_dict(dict(zip(found, values, strict=True)), sync_dist=self.trainer.world_size > 1)

    def measure(self, trainer: Trainer, data: Any, split: str) -> dict[tuple[str, str], float]:
        """Return the figures of the present weights on a split, by task and metric (``loss`` among them).

        What a subclass logs as ``test/<task>/<metric>`` and ``test/loss/<task>`` is taken for them. Loggers get those
        of another split than ``test`` under ``final/<split>``, apart from its curves.

        Args:
            trainer: The trainer.
            data: The split's loader, or a data module that tests on it.
            split: The split's name.
        """
        where = {"datamodule" if isinstance(data, LightningDataModule) else "dataloaders": data}
        loggers, trainer.loggers = trainer.loggers, []
        extra: list[Callback] = [LossesBeside()] if is_overridden("test_step", self, MeasuredModule) else []
        trainer.callbacks += extra  # type: ignore[attr-defined]
        try:
            by_loader = trainer.test(self, verbose=False, **where)
        finally:
            trainer.loggers = loggers
            for callback in extra:
                trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
        found: dict[str, float] = {}
        for callback in extra:
            found |= logged(callback.figures, "test")  # type: ignore[attr-defined]
        for one in by_loader:
            found |= one
        if split != "test":
            found = {_of_split(key, split): value for key, value in found.items()}
        log_results(trainer, found)
        return read(found)

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """Return whether more of a metric is better; ``None`` where that is not known."""
        return False if metric == "loss" else None

    def keys_of(self, names: Iterable[str]) -> set[str]:
        """Return the keys that validation logs where these losses have labels, as far as they are known."""
        return set(logged({(name, "loss"): 0.0 for name in names}, "val"))

    @property
    def validation_keys(self) -> set[str]:
        """The keys that validation logs where every loss has labels, as far as they are known."""
        own = is_overridden("validation_step", self, MeasuredModule)
        known = (self.seen_keys or set()) if own else self.keys_of(self.names)
        return known | (self.validated.keys() - {"epoch"})


def _of_split(key: str, split: str) -> str:
    return f"final/{split}/{key.removeprefix('test/')}"
