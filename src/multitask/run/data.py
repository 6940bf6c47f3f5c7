"""The data of a run, a :class:`~multitask.data.base.DataModule` or any other LightningDataModule, and its batches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import IterableDataset

from multitask.data.base import DataModule, Split, check_stream
from multitask.data.batches import examples_in
from multitask.data.loading import Loader
from multitask.errors import ConfigError, on_one_line

_HOOKS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
_TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class OtherData:
    """Gives any LightningDataModule the methods of a :class:`DataModule` that a run uses.

    Each of its stages is set up once, by the checks at start-up or by the Trainer.
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
            if "val" in self.splits and self.module.val_dataloader() in (None, [], (), {}):
                del self.splits["val"]

    def loader(self, split: str, *, training: bool = False) -> Any:
        """Return the module's loader of a split, or its nesting of loaders."""
        if split == "test":
            self.module.setup(stage="test")
        return getattr(self.module, _HOOKS[split])()


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


def batches_taken(batches: int, limit: int | float) -> int:
    """Return the number of batches that a Trainer's limit, a number or a share of them, leaves."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


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
    with suppress(RuntimeError):  # a LightningModule without a Trainer
        trainer: Trainer | None = part.trainer
        return trainer
    return None


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
    """Return a loader's batch as a step receives it, after the transfer hooks of the first owner that defines each."""
    for hook in _TRANSFER:
        owner = next((owner for owner in owners if is_overridden(hook, owner)), None)
        if owner is not None:
            device = [torch.device("cpu")] if hook == "transfer_batch_to_device" else []
            batch = getattr(owner, hook)(batch, *device, 0)
    return batch


def check_batches(data: DataModule, processes: int) -> None:
    """Refuse splits that cannot be batched, and a ``drop_last`` that leaves no batch to the processes of training.

    Splits in memory are checked in full; two examples of others are collated.
    """
    for name, split in data.splits.items():
        where = f"data: the {name} split"
        if isinstance(split, IterableDataset):
            check_stream(processes, data.batch_size if name == "train" else data.eval_batch_size)
        elif isinstance(split, Mapping):
            _check_arrays(where, split)
        else:
            examples = [split[i] for i in range(min(2, len(split)))]  # type: ignore[arg-type]
            with _stacking(where):
                (data.collate_fn or data.collate)(examples)

    if not data.drop_last or isinstance(data.splits.get("train"), IterableDataset | None):
        return
    loader = data.loader("train", training=True)
    assert isinstance(loader, Loader)
    size = loader.batch_size * processes
    if len(loader) == 0 or loader.examples < size:
        raise ConfigError(
            f"data.drop_last=true leaves no batch of {size} of the {loader.examples} training examples; lower "
            f"data.batch_size={data.batch_size}."
        )


def first_batch(data: Data, split: str, *models: Any) -> Any:
    """Return the first batch of a split as a step receives it, for ``train`` from the loader of training.

    ``models``: the model, for its transfer hooks; nothing before it is built.
    """
    training = split == "train"
    with _stacking(f"data: the {split} split"):
        try:
            if not isinstance(data, OtherData):
                return first_of(data.loader(split, training=training))
            with temporary_trainer(data.module, *models):
                batch = first_of(data.loader(split, training=training))
                return transferred(batch, data.module, *models)
        except StopIteration:
            raise ConfigError(f"data: the {split} split has no batch; check its loader.") from None


@contextmanager
def _stacking(where: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if "stack" not in str(error) and "collate" not in str(error):
            raise
        # The last line of a worker process's error is the message.
        message = on_one_line(str(error).strip().splitlines()[-1]).partition(". ")[0].rstrip(".")
        raise ConfigError(
            f"{where} has examples that cannot be stacked ({message}); set data.collate_fn to a function from a list "
            "of examples to a batch, or define the data module's collate."
        ) from error


def _check_arrays(where: str, values: Any, key: str = "", count: int | None = None) -> None:
    """Refuse a split in memory that is not made of tensors with one entry per example."""
    if isinstance(values, Mapping | list | tuple):
        count = examples_in(values) if count is None else count
        for name, inner in values.items() if isinstance(values, Mapping) else enumerate(values):
            _check_arrays(where, inner, f"{key}.{name}" if key else str(name), count)
    elif not isinstance(values, Tensor):
        raise ConfigError(
            f"{where} gives a {type(values).__name__} for '{key}'; a split in memory is made of tensors, by name."
        )
    elif not values.ndim or len(values) != count:
        raise ConfigError(
            f"{where} has {list(values.shape)} for '{key}' beside {count} examples; give one entry per example."
        )
