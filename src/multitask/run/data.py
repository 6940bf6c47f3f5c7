"""The data of a run: a :class:`~multitask.data.base.DataModule`, or any other LightningDataModule."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng

from multitask.data.base import DataModule, Split
from multitask.data.loading import Loader
from multitask.errors import ConfigError

_HOOKS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
_TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class OtherData:
    """Gives any LightningDataModule the methods of a :class:`DataModule` that a run uses.

    Each of its stages is set up once, by the checks at start-up or by the Trainer.

    Args:
        module: The data module.
    """

    def __init__(self, module: LightningDataModule) -> None:
        self.module = module
        module.prepare_data = cache(module.prepare_data)  # type: ignore[method-assign]
        module.setup = cache(module.setup)  # type: ignore[method-assign]
        self.splits: dict[str, Split | None] = {
            split: None for split, hook in _HOOKS.items() if is_overridden(hook, module, LightningDataModule)
        }
        """The names of the module's splits; their examples are unknown."""

    def setup(self) -> None:
        """Set the training stage up, as the Trainer does."""
        with temporary_trainer(self.module):
            self.module.prepare_data()
            self.module.setup(stage="fit")
            if "val" in self.splits and not _any(self.module.val_dataloader()):
                del self.splits["val"]

    def loader(self, split: str, *, training: bool = False) -> Any:
        """Return the module's loader of a split, or its nesting of loaders."""
        if split == "test":
            self.module.setup(stage="test")
        return getattr(self.module, _HOOKS[split])()


def _any(loaders: Any) -> bool:
    return loaders is not None and not (isinstance(loaders, list | tuple | dict) and not loaders)


Data = DataModule | OtherData


class _AsTest(LightningDataModule):
    """One split of another data module in place of the test split."""

    def __init__(self, data: LightningDataModule, split: str) -> None:
        super().__init__()
        self.data = data
        self.split = split
        for hook in _TRANSFER:
            if is_overridden(hook, data):
                setattr(self, hook, getattr(data, hook))

    def setup(self, stage: str) -> None:
        """Set up the stage that the split needs."""
        self.data.trainer = self.trainer
        if self.split == "test":
            self.data.setup(stage="test")

    def test_dataloader(self) -> Any:
        """Return the split's loader."""
        return getattr(self.data, _HOOKS[self.split])()

    predict_dataloader = test_dataloader


def training_data(data: Data) -> LightningDataModule:
    """Return the data module for ``trainer.fit``."""
    return data.module if isinstance(data, OtherData) else data


def evaluation_data(data: Data, split: str) -> Any:
    """Return the data for ``trainer.test`` that measures a split."""
    return _AsTest(data.module, split) if isinstance(data, OtherData) else data.loader(split)


def in_memory(splits: Mapping[str, Split | None]) -> dict[str, dict[str, Any]]:
    """Return the splits that are in memory, each as one batch."""
    return {name: dict(split) for name, split in splits.items() if isinstance(split, Mapping)}


def batches_in(loader: Any) -> int | None:
    """Return the number of batches of a loader; ``None`` if it has no length."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def first_of(loader: Any) -> Any:
    """Return the first batch of a loader, or of any nesting of loaders, as the Trainer would yield it."""
    if isinstance(loader, list | tuple | dict | CombinedLoader):
        combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
        return next(iter(combined))[0]
    return next(iter(loader))


def bare_trainer(**options: Any) -> Trainer:
    """Return a Trainer on one CPU, unless ``options`` say otherwise, that prints, logs and saves nothing."""
    silent = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return Trainer(**{"accelerator": "cpu", "devices": 1, **silent, **options})


@contextmanager
def temporary_trainer(*parts: Any) -> Iterator[None]:
    """Attach a temporary Trainer, which hooks of data and model may use; restore random states afterwards."""
    trainer = bare_trainer()
    before = [_trainer_of(part) for part in parts]
    with isolate_rng():
        for part in parts:
            part.trainer = trainer
        try:
            yield
        finally:
            for part, its in zip(parts, before, strict=True):
                part.trainer = its


def _trainer_of(part: Any) -> Trainer | None:
    try:
        trainer: Trainer | None = part.trainer
    except RuntimeError:  # a LightningModule that has none
        return None
    return trainer


def resumption_of(data: Data) -> str:
    """Return ``exact``, or the reason why a resumed run may differ from an uninterrupted one, in one sentence."""
    loader = data.loader("train", training=True)
    if isinstance(loader, Loader):
        return "exact"
    return (
        f"the training batches come from a {type(loader).__name__}, whose order and position are not in the "
        "checkpoint: a resumed run reads its remaining batches from the loader's start, perhaps in another order"
    )


def transferred(batch: Any, *owners: Any) -> Any:
    """Return a batch as a step receives it, after the transfer hooks; the first owner that defines a hook provides it.

    Args:
        batch: A batch of a loader.
        owners: Data module and model, in this order.
    """
    for hook in _TRANSFER:
        found: Callable[..., Any] | None = next(
            (getattr(owner, hook) for owner in owners if is_overridden(hook, owner)), None
        )
        if found is not None:
            device = (torch.device("cpu"),) if hook == "transfer_batch_to_device" else ()
            batch = found(batch, *device, 0)
    return batch


def check_other(data: OtherData, options: dict[str, Any]) -> None:
    """Refuse keys that only DataModules of this package have."""
    for key, value in options.items():
        if value:
            raise ConfigError(
                f"data.{key}={value} is a key of multitask.data.base.DataModule, and {type(data.module).__name__} is "
                f"none; leave data.{key} out, and handle it in train_dataloader."
            )
