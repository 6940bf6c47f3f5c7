"""The first batches of a run's data; refuses examples that cannot be collated."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from multitask.data.base import DataModule, check_stream
from multitask.data.batches import examples_in
from multitask.data.loading import Loader
from multitask.errors import ConfigError
from multitask.run.data import Data, OtherData, first_of, temporary_trainer, transferred

_WAY_OUT = "set data.collate_fn to a function from a list of examples to a batch, or define the data module's collate"


def check_batches(data: DataModule, processes: int) -> None:
    """Check each split's type; collate the first two examples of splits that are read lazily.

    Args:
        data: The data, set up.
        processes: The number of processes that share the training batches.

    Raises:
        ConfigError: If a split in memory is not made of tensors of one length, its examples cannot be collated,
            or ``drop_last`` leaves no training batch.
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
    """Return the first batch of a split as a step receives it.

    Args:
        data: The data.
        split: The split's name; ``train`` uses the loader of training.
        models: The model, for its transfer hooks; nothing before it is built.

    Raises:
        ConfigError: If the split has no batch, or its examples cannot be stacked.
    """
    with _stacking(f"data: the {split} split"):
        try:
            if not isinstance(data, OtherData):
                return first_of(data.loader(split, training=split == "train"))
            with temporary_trainer(data.module, *models):
                return transferred(
                    first_of(data.loader(split, training=split == "train")), data.module, *models
                )
        except StopIteration:
            raise ConfigError(f"data: the {split} split has no batch; check its loader.") from None


@contextmanager
def _stacking(where: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if "stack" not in str(error) and "collate" not in str(error):
            raise
        raise ConfigError(
            f"{where} has examples that cannot be stacked ({_first_sentence(error)}); {_WAY_OUT}."
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


def _first_sentence(error: Exception) -> str:
    # The last line of a worker process's error is the message.
    return " ".join(str(error).strip().splitlines()[-1].split()).partition(". ")[0].rstrip(".")
