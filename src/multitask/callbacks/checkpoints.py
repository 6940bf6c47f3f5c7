"""best.ckpt and last.ckpt, written only where a run can resume bit for bit."""

import os
import shutil
from collections.abc import Mapping
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
    """Keeps the weights that are best by a logged metric, and the last state of the run.

    A state is saved before a batch or after an epoch, never in between: validation, schedulers and
    combiner have then done all that belongs to the steps before, and no gradient is half accumulated.

    Args:
        dirpath: The folder.
        monitor: The metric that decides what is best; ``None`` keeps the last state alone.
        mode: ``min`` or ``max``.
        every_n_train_steps: Write last.ckpt also every so many optimizer steps.
        window: How many batches an optimizer step takes.

    Raises:
        ValueError: If ``mode`` is neither, or a number is not positive.
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
        self.monitor = monitor
        self.mode = mode
        self.every_n_train_steps = every_n_train_steps
        self.window = window
        self.best_model_score: Tensor | None = None
        self._best_step = -1
        self.kept: dict[str, int] = {}
        """The step of each file that another callback wants kept; see :meth:`keep`."""
        self._due: list[str] = []
        self._saved_step = -1
        self._before_forward: list[Tensor] = []

    @property
    def last(self) -> Path:
        """The file that the run can resume from."""
        return self.folder / "last.ckpt"

    @property
    def best_model_path(self) -> str:
        """The best weights so far, empty where there are none."""
        return str(self.folder / BEST) if self._best_step >= 0 else ""

    def state_dict(self) -> dict[str, Any]:
        """Return what is best so far."""
        return {"score": self.best_model_score, "step": self._best_step, "kept": self.kept}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note how far metrics.csv is: rows after these will be written again."""
        checkpoint["rows"] = sum(each.rows for each in trainer.loggers if isinstance(each, MetricsCsv))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was best so far."""
        self.best_model_score = state_dict["score"]
        self._best_step = state_dict["step"]
        self.kept = dict(state_dict.get("kept", {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the state that the run resumes from is saved."""
        self._saved_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps; and note what the forward pass may spoil."""
        if batch_idx % self.window:
            return
        every = self.every_n_train_steps
        if every and trainer.global_step % every == 0 and trainer.global_step != self._saved_step:
            self.save_before_batch(trainer)
        self._note_buffers(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the best so far; in mid-epoch the weights are kept at once."""
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
                    f"={self.monitor} has no finite value in epoch {trainer.current_epoch + 1}, and cannot choose it.",
                )
        elif self.best_model_score is None or self._better(score):
            self.best_model_score = score
            self._best_step = trainer.global_step
            self._keep(trainer, BEST)

    def keep(self, trainer: Trainer, name: str) -> None:
        """Keep the weights that were just validated in a file of their own, and in the folder of a run that resumes."""
        if not _dry(trainer):
            self.kept[name] = trainer.global_step
            self._keep(trainer, name)

    def _keep(self, trainer: Trainer, name: str) -> None:
        """Save in mid-epoch; at its end the file is a link to the last state, once that is saved."""
        if trainer.is_last_batch:
            self._due.append(name)
        else:
            self._save(trainer, self.folder / name)

    def _better(self, score: Tensor) -> bool:
        assert self.best_model_score is not None
        best = self.best_model_score.to(score.device)
        return bool(score < best if self.mode == "min" else score > best)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state, and keep it as the best if it is."""
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
            # Every process reads the file when the fit has ended.
            trainer.strategy.barrier("best")
            self._due = []

    def save_before_batch(self, trainer: Trainer, taken: int = 0) -> None:
        """Save the state before the batch that is about to start, so that a resumed run begins with it.

        Args:
            trainer: The trainer.
            taken: How many batches of an unfinished window came before it.
        """
        loader = _loader(trainer)
        if loader is not None:
            loader.give_back(taken + 1)
        with before_batches(trainer, taken):
            self._save(trainer, self.last)
        if loader is not None:
            loader.give_back(-(taken + 1))
        self._saved_step = trainer.global_step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the state before a step whose loss is not finite, unless it is spoiled already."""
        if not isinstance(exception, FloatingPointError):
            return
        self._restore_buffers(pl_module)
        values = [*pl_module.parameters(), *(b for b in pl_module.buffers() if b.is_floating_point())]
        if all(bool(v.isfinite().all()) for v in values):
            completed = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            self.save_before_batch(trainer, completed % self.window)

    def _note_buffers(self, module: LightningModule) -> None:
        """Remember running statistics: the forward pass of a bad batch moves them before its loss is seen."""
        buffers = list(module.buffers())
        if len(buffers) != len(self._before_forward):
            self._before_forward = [buffer.detach().clone() for buffer in buffers]
        else:
            for saved, buffer in zip(self._before_forward, buffers, strict=True):
                saved.copy_(buffer)

    def _restore_buffers(self, module: LightningModule) -> None:
        buffers = list(module.buffers())
        if len(buffers) == len(self._before_forward):
            for saved, buffer in zip(self._before_forward, buffers, strict=True):
                buffer.copy_(saved)

    def _save(self, trainer: Trainer, path: Path) -> None:
        if _dry(trainer):
            return
        # Lightning's own writer keeps silent where it is not allowed to write; the renaming does not.
        temporary = path.with_name(f".{path.name}.part")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            temporary.replace(path)
        trainer.strategy.barrier("checkpoint")


def _dry(trainer: Trainer) -> bool:
    """Return whether this is a run of one batch that leaves nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _loader(trainer: Trainer) -> Loader | None:
    """Return the training loader where it is one that keeps its position."""
    loader = trainer.train_dataloader
    return loader if isinstance(loader, Loader) else None


def find_kept(source: Path, states: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files with weights that the run of a checkpoint has kept so far, by their names in its folder.

    Args:
        source: The checkpoint.
        states: The states of its callbacks.

    Raises:
        ConfigError: If a file is not beside the checkpoint any more.
    """
    state = states.get(Checkpoints.__name__, {})
    steps = {BEST: state.get("step", -1), **state.get("kept", {})}
    return {name: _kept(source, name, step) for name, step in steps.items() if step >= 0}


def _kept(source: Path, name: str, step: int) -> Path:
    best = source.parent / name
    # A run killed between the two files leaves one from before: then the checkpoint itself is the best.
    for candidate in (best, source):
        if candidate.is_file() and _step(candidate) == step:
            return candidate
    raise ConfigError(
        f"ckpt_path={source} resumes a run whose best weights, of step {step}, are not in {best} any more; put "
        "them back, or start a new run from its weights with init_from."
    )


def copy_checkpoint(found: Path, target: Path) -> None:
    """Copy a checkpoint into a resumed run's folder, unless it is there already."""
    if not (target.is_file() and target.samefile(found)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(found, target, link=False)


def _step(path: Path) -> int:
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _replace(source: Path, target: Path, *, link: bool) -> None:
    """Put a file in another's place at once; as a hard link where it is of the same run."""
    temporary = target.with_name(f".{target.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        if not link:
            raise OSError
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
