"""Saves in checkpoints which parameters are frozen, so that a resumed run trains the same ones."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning

from multitask.errors import ConfigError


class Frozen(Callback):
    """Saves which parameters are frozen and which modules are in evaluation mode; restores both on resume.

    A callback that unfreezes by epoch freezes first, in a resumed run too, and does not repeat the epochs in which it
    unfroze parameters (https://github.com/Lightning-AI/pytorch-lightning/issues/21901).
    """

    def __init__(self) -> None:
        self._trained: set[str] = set()
        self._evaluating: list[str] = []
        self._saved: dict[str, list[str]] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove frozen parameters from the optimizer: Lightning's finetuning callbacks add them at their own rate."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if self._saved is None and any(isinstance(callback, BaseFinetuning) for callback in callbacks):
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["params"] = [p for p in group["params"] if p.requires_grad]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the checkpoint's state, after callbacks have frozen parameters at the start."""
        self._trained = _trained(pl_module)  # the parameters that DistributedDataParallel averages
        if self._saved is None:
            return
        saved = {key: set(names) for key, names in self._saved.items()}
        for name, parameter in pl_module.named_parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(name not in saved["parameters"])
        for name, module in pl_module.named_modules():
            module.training = name not in saved["evaluating"]
            if hasattr(module, "track_running_stats"):
                module.track_running_stats = name not in saved["unmeasured"]
        self._saved = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record which modules are in evaluation mode in training; during validation all of them are.

        Raises:
            ConfigError: If the processes would train a parameter without averaging its gradient.
        """
        several = pl_module.automatic_optimization and trainer.world_size > 1
        if several and _trained(pl_module) - self._trained:
            raise ConfigError(
                "a callback unfreezes parameters during the run, and torch's DistributedDataParallel "
                "averages only the gradients of parameters that were trained from the start; set "
                "trainer.devices=1, or choose a Jacobian method, such as weighting=upgrad."
            )
        self._evaluating = _evaluating(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the names of frozen parameters and of modules in evaluation mode."""
        if trainer.training:
            self._evaluating = _evaluating(pl_module)
        modules = pl_module.named_modules()
        checkpoint["frozen"] = {
            "parameters": [name for name, p in pl_module.named_parameters() if not p.requires_grad],
            "evaluating": self._evaluating,
            "unmeasured": [n for n, m in modules if getattr(m, "track_running_stats", True) is False],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the saved names until training starts."""
        self._saved = checkpoint.get("frozen")


def _trained(module: LightningModule) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def _evaluating(module: LightningModule) -> list[str]:
    return [name for name, part in module.named_modules() if not part.training]
