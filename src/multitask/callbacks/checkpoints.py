"""best.ckpt and last.ckpt, saved only at points from which a run resumes bit for bit."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from multitask.data.loading import Loader
from multitask.errors import ConfigError, choices
from multitask.lightning.curves import MetricsCsv
from multitask.lightning.module import MultiLossModule
from multitask.private import before_batches

BEST = "best.ckpt"


class Checkpoints(Checkpoint):
    """Keeps the best weights by a logged metric, and the last state of the run.

    A state is saved only before a batch or after an epoch. Validation, schedulers and combiner have then completed
    the previous steps, and no gradient is partly accumulated.

    Args:
        dirpath: The folder.
        monitor: The metric that decides what is best; ``None`` keeps only the last state.
        mode: ``min`` or ``max``; others raise ``ValueError``.
        every_n_train_steps: Also save last.ckpt every this many optimizer steps; below 1 raises ``ValueError``.
        window: The number of batches per optimizer step.
    """

    def __init__(
        self,
        dirpath: str,
        monitor: str | None = None,
        mode: str = "min",
        every_n_train_steps: int | None = None,
        window: int = 1,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"selection.mode={mode} is unknown; {choices(mode, ('min', 'max'))}")
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(
                f"callbacks.checkpoint.every_n_train_steps={every_n_train_steps} must be at least 1, or null."
            )
        self.folder = Path(dirpath)
        self.monitor, self.mode = monitor, mode
        self.every_n_train_steps = every_n_train_steps
        self.window = window
        self.best_model_score: Tensor | None = None
        self._best_step = -1
        self.kept: dict[str, int] = {}
        """The step of each file that another callback keeps; see :meth:`keep`."""
        self._due: list[str] = []
        self._saved_step = -1
        self._before_forward: list[Tensor] = []

    @property
    def last(self) -> Path:
        """The file to resume from."""
        return self.folder / "last.ckpt"

    @property
    def best_model_path(self) -> str:
        """The file of the best weights so far, empty if there are none."""
        return str(self.folder / BEST) if self._best_step >= 0 else ""

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, its step and the kept files."""
        return {"score": self.best_model_score, "step": self._best_step, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, its step and the kept files."""
        self.best_model_score, self._best_step = state_dict["score"], state_dict["step"]
        self.kept = dict(state_dict.get("kept", {}))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the number of rows of metrics.csv; a resumed run writes later rows again."""
        checkpoint["rows"] = sum(each.rows for each in trainer.loggers if isinstance(each, MetricsCsv))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that the state at the start is saved already."""
        self._saved_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Save every ``every_n_train_steps`` steps, and copy the buffers, which a forward pass changes."""
        if batch_idx % self.window:
            return
        every = self.every_n_train_steps
        if every and trainer.global_step % every == 0 and trainer.global_step != self._saved_step:
            self.save_before_batch(trainer)
        # A bad batch changes running statistics before its loss is known.
        buffers = list(pl_module.buffers())
        if len(buffers) != len(self._before_forward):
            self._before_forward = [buffer.detach().clone() for buffer in buffers]
        else:
            _copy(buffers, self._before_forward)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the score with the best so far, and keep the weights if they are better."""
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit" or _dry(trainer):
            return
        known = trainer.callback_metrics
        if self.monitor not in known:
            raise ConfigError(
                f"selection.metric={self.monitor} is not logged; {choices(self.monitor, known)}"
            )
        score = known[self.monitor].detach().clone()
        if not score.isfinite():
            if isinstance(pl_module, MultiLossModule):
                pl_module.warn_once(
                    "selection.metric",
                    f"={self.monitor} has no finite value in epoch {trainer.current_epoch + 1}, which is skipped.",
                )
            return
        best, better = self.best_model_score, torch.lt if self.mode == "min" else torch.gt
        if best is None or better(score, best.to(score.device)):
            self.best_model_score, self._best_step = score, trainer.global_step
            self._keep(trainer, BEST)

    def keep(self, trainer: Trainer, name: str) -> None:
        """Keep the weights that were just validated in a separate file, which is copied when a run resumes."""
        if not _dry(trainer):
            self.kept[name] = trainer.global_step
            self._keep(trainer, name)

    def _keep(self, trainer: Trainer, name: str) -> None:
        """Save the weights at once within an epoch; at its end, link to the last state once it is saved."""
        if trainer.is_last_batch:
            self._due.append(name)
        else:
            self._save(trainer, self.folder / name)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state, and link the files that keep it."""
        if trainer.is_last_batch:
            if (loader := _loader(trainer)) is not None:
                loader.end_pass()
            self._save(trainer, self.last)
        else:
            # Cut short by max_steps: a run that resumes here continues this epoch.
            epochs: Any = trainer.fit_loop.epoch_progress
            epochs.current.processed -= 1
            epochs.total.processed -= 1
            self._save(trainer, self.last)
            epochs.current.processed += 1
            epochs.total.processed += 1
        self._saved_step = trainer.global_step
        if self._due:
            for name in self._due if trainer.is_global_zero else ():
                _replace(self.last, self.folder / name, link=True)
            # Every process reads the file after the fit.
            trainer.strategy.barrier("best")
            self._due = []

    def save_before_batch(self, trainer: Trainer, taken: int = 0) -> None:
        """Save the state before the next batch, and before the ``taken`` earlier batches of an unfinished window."""
        loader = _loader(trainer)
        if loader is not None:
            loader.give_back(taken + 1)
        with before_batches(trainer, taken):
            self._save(trainer, self.last)
        if loader is not None:
            loader.give_back(-(taken + 1))
        self._saved_step = trainer.global_step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the state before a step with a non-finite loss, unless the weights are not finite either."""
        if not isinstance(exception, FloatingPointError):
            return
        buffers = list(pl_module.buffers())
        if len(buffers) == len(self._before_forward):
            _copy(self._before_forward, buffers)
        values = [*pl_module.parameters(), *(b for b in buffers if b.is_floating_point())]
        if all(bool(v.isfinite().all()) for v in values):
            completed = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            self.save_before_batch(trainer, completed % self.window)

    def _save(self, trainer: Trainer, path: Path) -> None:
        if _dry(trainer):
            return
        # Lightning's writer ignores a lack of write permission; renaming the file does not.
        temporary = path.with_name(f".{path.name}.part")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            temporary.replace(path)
        trainer.strategy.barrier("checkpoint")


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    for old, new in zip(target, source, strict=True):
        old.copy_(new)


def _dry(trainer: Trainer) -> bool:
    """Return whether the run is a ``fast_dev_run``, which saves nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _loader(trainer: Trainer) -> Loader | None:
    """Return the training loader if it saves its position, else ``None``."""
    loader = trainer.train_dataloader
    return loader if isinstance(loader, Loader) else None


def find_kept(source: Path, states: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of weights that the run of a checkpoint, with these states of callbacks, has kept, by name.

    Raises ``ConfigError`` if a file is no longer beside the checkpoint.
    """
    state = states.get(Checkpoints.__name__, {})
    steps = {BEST: state.get("step", -1), **state.get("kept", {})}
    return {name: _kept(source, name, step) for name, step in steps.items() if step >= 0}


def _kept(source: Path, name: str, step: int) -> Path:
    best = source.parent / name
    # A run killed between the two writes leaves an older file; then the checkpoint itself is the best.
    for candidate in (best, source):
        if candidate.is_file():
            content = torch.load(candidate, map_location="cpu", weights_only=True, mmap=True)
            if content["global_step"] == step:
                return candidate
    raise ConfigError(
        f"ckpt_path={source} resumes a run whose best weights, of step {step}, are no longer in {best}; restore "
        "them, or start a new run from its weights with init_from."
    )


def copy_checkpoint(found: Path, target: Path) -> None:
    """Copy a checkpoint to a resumed run's folder, unless it is already in it."""
    if not (target.is_file() and target.samefile(found)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(found, target, link=False)


def _replace(source: Path, target: Path, *, link: bool) -> None:
    """Replace a file by another atomically; ``link`` makes a hard link if the file system allows it."""
    temporary = target.with_name(f".{target.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        if not link:
            raise OSError
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
